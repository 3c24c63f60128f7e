-- schema_listing: the catalogue as text, one object a line, in an order of its own.
SELECT line FROM (
    SELECT 'column ' || class.relname || '.' || attribute.attname || ' '
        || format_type(attribute.atttypid, attribute.atttypmod)
        || CASE WHEN attribute.attnotnull THEN ' not null' ELSE '' END AS line
    FROM pg_attribute AS attribute JOIN pg_class AS class ON class.oid = attribute.attrelid
    WHERE class.relnamespace = 'public'::regnamespace AND class.relkind = 'r'
        AND attribute.attnum > 0 AND NOT attribute.attisdropped
    UNION ALL
    SELECT 'constraint ' || conrelid::regclass || ' ' || conname || ' ' || contype::text
        || CASE WHEN convalidated THEN '' ELSE ' not valid' END
        || CASE contype WHEN 'c' THEN ' ' || md5(pg_get_constraintdef(oid)) ELSE '' END
    FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND conrelid <> 0 AND contype IN ('c', 'f', 'p', 'u')
    UNION ALL
    SELECT 'index ' || relation.relname || ' on ' || pg_index.indrelid::regclass
        || CASE WHEN indisunique THEN ' unique' ELSE '' END || CASE WHEN indisvalid THEN '' ELSE ' invalid' END
        || CASE WHEN indpred IS NULL THEN '' ELSE ' partial' END
    FROM pg_index JOIN pg_class AS relation ON relation.oid = indexrelid
    WHERE relation.relnamespace = 'public'::regnamespace
    UNION ALL
    SELECT 'trigger ' || tgrelid::regclass || ' ' || tgname || CASE WHEN tgenabled = 'D' THEN ' disabled' ELSE '' END
    FROM pg_trigger WHERE NOT tgisinternal
    UNION ALL
    SELECT 'function ' || proname || ' ' || md5(prosrc) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
    UNION ALL
    SELECT 'sequence ' || relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'S'
) AS listing
WHERE line NOT LIKE '%\_\_diesel\_schema\_migrations%'
ORDER BY line COLLATE "C"
