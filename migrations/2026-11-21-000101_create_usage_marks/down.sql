-- Without the marks what was rolled up would be counted twice.
DELETE FROM tenant_usage_daily;
DROP TABLE tenant_usage_marks;
