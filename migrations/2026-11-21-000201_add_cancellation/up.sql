-- A buyer's wish that a running run stop. The worker that has the run ends it; the version does not change,
-- so that what the worker saw still holds.
ALTER TABLE runs ADD COLUMN cancel_requested_at timestamptz;
