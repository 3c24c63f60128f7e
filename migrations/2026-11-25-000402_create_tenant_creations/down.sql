-- Requests that are repeated from here on make further tenants.
DROP TABLE tenant_creations;
