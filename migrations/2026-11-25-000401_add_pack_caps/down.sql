ALTER TABLE plans DROP COLUMN pack_cost_max_usd_micros;
