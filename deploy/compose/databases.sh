#!/bin/bash
# Run by PostgreSQL's image, once, when its data folder is new: roles and databases. It may be run again
# (bash /docker-entrypoint-initdb.d/10-databases.sh in the container): what is missing is made, and the
# passwords are those of the files.
#
# The catalog's role owns the catalog: flows and migrations. `atlasloop migrate` gives the review
# service's role its rights, table by table. Prefect owns its own database. The superuser has no
# password: only who is in this container, at its socket, can be it.
set -eu
# First by themselves: an argument whose file cannot be read would be an empty password.
catalog=$(cat "${CATALOG_PASSWORD_FILE:-/run/secrets/catalog_password}")
review=$(cat "${REVIEW_PASSWORD_FILE:-/run/secrets/review_password}")
prefect=$(cat "${PREFECT_PASSWORD_FILE:-/run/secrets/prefect_password}")
# By its environment, as arguments stand in the list of processes.
catalog=$catalog review=$review prefect=$prefect psql \
    --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --username="${POSTGRES_USER:-postgres}" --dbname=postgres \
    --set=catalog_name="${CATALOG_NAME:-atlasloop}" --set=catalog_role="${CATALOG_ROLE:-atlasloop}" \
    --set=review_role="${REVIEW_ROLE:-atlasloop_review}" \
    --set=prefect_name="${PREFECT_NAME:-prefect}" --set=prefect_role="${PREFECT_ROLE:-prefect}" <<'SQL'
\getenv catalog_password catalog
\getenv review_password review
\getenv prefect_password prefect
SELECT format('CREATE ROLE %I LOGIN', role)
FROM unnest(ARRAY[:'catalog_role', :'review_role', :'prefect_role']) AS role
WHERE role NOT IN (SELECT rolname FROM pg_roles) \gexec
ALTER ROLE :"catalog_role" PASSWORD :'catalog_password';
ALTER ROLE :"review_role" PASSWORD :'review_password';
ALTER ROLE :"prefect_role" PASSWORD :'prefect_password';
SELECT format('CREATE DATABASE %I OWNER %I', name, owner)
FROM (VALUES (:'catalog_name', :'catalog_role'), (:'prefect_name', :'prefect_role')) AS wanted (name, owner)
WHERE name NOT IN (SELECT datname FROM pg_database) \gexec
REVOKE CONNECT ON DATABASE :"catalog_name", :"prefect_name", postgres FROM PUBLIC;
GRANT CONNECT ON DATABASE :"catalog_name" TO :"review_role";
ALTER ROLE CURRENT_USER PASSWORD NULL;
SQL
