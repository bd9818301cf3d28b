-- Version 3: ids of publications, and a clock that is never set back.

-- The id of a publication, read from the index without the payload. Empty in rows of earlier versions.
ALTER TABLE hubbub_publications ADD COLUMN publication TEXT NOT NULL DEFAULT '';
DROP INDEX hubbub_history;
CREATE INDEX hubbub_history ON hubbub_publications (namespace, channel, offset, publication) WHERE offset > 0;

-- The clock of this file, one row: the latest time that was saved, and the seconds that it is ahead of the machine's
-- clock, because the machine's clock was set back by as much.
CREATE TABLE hubbub_clock (latest REAL NOT NULL, ahead REAL NOT NULL);
INSERT INTO hubbub_clock SELECT coalesce(max(used), 0), 0 FROM hubbub_streams
