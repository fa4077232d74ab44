#!/bin/bash
# Run by PostgreSQL's image, once, when its data folder is new: roles and databases.
set -eu
# First by themselves: an argument whose file cannot be read would be an empty password.
catalog=$(cat /run/secrets/catalog_password)
prefect=$(cat /run/secrets/prefect_password)
psql --set=ON_ERROR_STOP=1 --username=postgres --dbname=postgres \
    --set=catalog_password="$catalog" --set=prefect_password="$prefect" <<'SQL'
CREATE ROLE atlasloop LOGIN PASSWORD :'catalog_password';
CREATE ROLE prefect LOGIN PASSWORD :'prefect_password';
CREATE DATABASE atlasloop OWNER atlasloop;
CREATE DATABASE prefect OWNER prefect;
REVOKE CONNECT ON DATABASE atlasloop FROM PUBLIC;
REVOKE CONNECT ON DATABASE prefect FROM PUBLIC;
SQL
