ALTER TABLE runs DROP COLUMN cancel_requested_at;
