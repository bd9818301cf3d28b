-- Version 3: publications need not be announced with NOTIFY. That is a matter of functions.sql alone, and workers of
-- version 2 can go on using the schema.

UPDATE {schema}.state SET version = 3;
