-- Version 3: publications need not be announced with NOTIFY. Only functions.sql changes, and workers of version 2 can
-- still use the schema.

UPDATE {schema}.state SET version = 3;
