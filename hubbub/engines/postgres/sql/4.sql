-- Version 4: the position of a channel can be read. Only functions.sql changes, and workers of versions 2 and 3 can still
-- use the schema.

UPDATE {schema}.state SET version = 4;
