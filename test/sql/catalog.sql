LOAD 'envrt';
-- Every object has a comment, and nothing is granted to PUBLIC.
WITH objects AS (
    SELECT classid, objid
    FROM pg_depend
    WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
      AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'envrt')
    UNION ALL
    SELECT 'pg_class'::regclass, indexrelid
    FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
    WHERE relnamespace = 'envrt'::regnamespace
      AND indexrelid NOT IN (SELECT conindid FROM pg_constraint WHERE contype IN ('p', 'u'))
    UNION ALL
    SELECT 'pg_trigger'::regclass, pg_trigger.oid
    FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid
    WHERE relnamespace = 'envrt'::regnamespace AND NOT tgisinternal
)
SELECT pg_describe_object(classid, objid, 0) AS without_comment
FROM objects
WHERE obj_description(objid, classid::regclass::name) IS NULL
  -- What a relation brings with it belongs to the extension by itself from some versions on.
  AND NOT (classid = 'pg_type'::regclass AND EXISTS (SELECT FROM pg_type t LEFT JOIN pg_type e ON e.oid = t.typelem WHERE t.oid = objid AND (t.typrelid <> 0 OR e.typrelid <> 0)))
ORDER BY 1;
SELECT obj_description('envrt'::regnamespace, 'pg_namespace') IS NOT NULL AS schema_comment;

SELECT p.oid::regprocedure
FROM pg_depend d JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid
WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
  AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'envrt')
  AND (p.proacl IS NULL OR EXISTS (SELECT FROM aclexplode(p.proacl) a WHERE a.grantee = 0));
SELECT c.oid::regclass
FROM pg_class c, aclexplode(c.relacl) a
WHERE c.relnamespace = 'envrt'::regnamespace AND a.grantee = 0;

-- Columns that hold a state have a CHECK.
SELECT c.conname, pg_get_constraintdef(c.oid)
FROM pg_constraint c
WHERE c.connamespace = 'envrt'::regnamespace AND c.contype = 'c'
ORDER BY 1;

-- Each column of a foreign key has an index that begins with it.
SELECT c.conrelid::regclass, c.conname
FROM pg_constraint c
WHERE c.connamespace = 'envrt'::regnamespace AND c.contype = 'f'
  AND NOT EXISTS (
    SELECT FROM pg_index i
    WHERE i.indrelid = c.conrelid AND i.indisvalid
      AND (i.indkey::int2[])[0:cardinality(c.conkey) - 1] @> c.conkey AND c.conkey @> (i.indkey::int2[])[0:cardinality(c.conkey) - 1]
      AND (i.indpred IS NULL OR pg_get_expr(i.indpred, i.indrelid) = (
        SELECT format('(%I IS NOT NULL)', attname) FROM pg_attribute WHERE attrelid = c.conrelid AND attnum = ALL (c.conkey))))
ORDER BY 1, 2;

BEGIN;
INSERT INTO envrt.companies (name) VALUES ('catalog') RETURNING id AS company \gset
INSERT INTO envrt.agents (company_id, name) VALUES (:'company', 'a') RETURNING id AS agent \gset
INSERT INTO envrt.heartbeat_runs (company_id, agent_id) VALUES (:'company', :'agent') RETURNING id AS run \gset
INSERT INTO envrt.execution_workspaces (company_id, project_id, mode, strategy_type, name) VALUES (:'company', gen_random_uuid(), 'm', 's', 'n') RETURNING id AS workspace \gset
INSERT INTO envrt.environments (company_id, name, driver) VALUES (:'company', 'e', 'sandbox') RETURNING id AS environment \gset
INSERT INTO envrt.environment_leases (company_id, environment_id, heartbeat_run_id, execution_workspace_id, lease_policy, provider, provider_lease_id, metadata)
VALUES (:'company', :'environment', :'run', :'workspace', 'reuse_by_environment', 'catalog', 'l', '{"image": "i"}');
INSERT INTO envrt.company_secrets (company_id, name, created_by_agent_id) VALUES (:'company', 's', :'agent') RETURNING id AS secret \gset
INSERT INTO envrt.company_secret_versions (secret_id, version, material, value_sha256, created_by_agent_id) VALUES (:'secret', 1, '{}', 'h', :'agent');
INSERT INTO envrt.plugins (plugin_key, package_name, version, manifest_json) VALUES ('k', 'p', '1', '{}');
INSERT INTO envrt.activity_log (company_id, actor_id, action, entity_type, entity_id, agent_id, run_id) VALUES (:'company', 'a', 'a', 't', 'i', NULL, NULL);
INSERT INTO envrt.settings (name, value) VALUES ('catalog', '');

-- Each index with text in it: as much as fits in all of its texts at once, and a byte more in each of them.
CREATE FUNCTION pg_temp.noise(length integer) RETURNS text LANGUAGE sql VOLATILE AS
$$ SELECT string_agg(chr(33 + floor(random() * 94)::integer), '') FROM generate_series(1, length) $$;
-- The row from above again, with changes.
CREATE FUNCTION pg_temp.try(relation regclass, changes jsonb) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('INSERT INTO %1$s SELECT n.* FROM (SELECT to_jsonb(t) AS row FROM %1$s t WHERE xmin = pg_current_xact_id()::xid LIMIT 1) o,
        jsonb_populate_record(NULL::%1$s, o.row || $1) n', relation)
    USING CASE WHEN changes ? 'name' OR relation::text = 'envrt.settings' THEN '{}'::jsonb ELSE jsonb_build_object('name', pg_temp.noise(20)) END
        || jsonb_build_object('id', gen_random_uuid(), 'version', floor(random() * 1e9), 'issue_prefix', pg_temp.noise(20), 'plugin_key', pg_temp.noise(20)) || changes;
    RETURN 'fits';
EXCEPTION WHEN OTHERS THEN
    RETURN SQLSTATE || ' ' || SQLERRM;
END $$;
WITH texts AS (
    SELECT DISTINCT i.indexrelid, i.indrelid, a.attname,
           (SELECT substring(pg_get_constraintdef(c.oid) FROM '<= (\d+)')::integer FROM pg_constraint c
            WHERE c.conrelid = i.indrelid AND c.conkey = ARRAY[a.attnum] AND pg_get_constraintdef(c.oid) ~ 'octet_length') AS most
    FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_am m ON m.oid = x.relam
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum > 0
    WHERE x.relnamespace = 'envrt'::regnamespace AND a.atttypid = 'text'::regtype AND m.amname <> 'hash'
      AND (a.attnum = ANY (i.indkey) OR pg_get_expr(i.indexprs, i.indrelid) ~ ('\m' || a.attname || '\M'))
      -- One of some words, by a CHECK
      AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conrelid = i.indrelid AND c.conkey = ARRAY[a.attnum] AND pg_get_constraintdef(c.oid) ~ '= ANY'))
SELECT index, texts, pg_temp.try(relation, at_most) AS all_at_once, more
FROM (
    SELECT indrelid::regclass AS relation, indexrelid::regclass::text COLLATE "C" AS index,
           string_agg(attname || ': ' || coalesce(most::text, 'no limit'), ', ' ORDER BY attname) AS texts,
           jsonb_object_agg(attname, pg_temp.noise(coalesce(most, 2700))) AS at_most,
           string_agg(pg_temp.try(indrelid, jsonb_build_object(attname, pg_temp.noise(coalesce(most, 2700) + 1))), E'\n' ORDER BY attname) AS more
    FROM texts GROUP BY indrelid, indexrelid) t
ORDER BY index;
-- These take whatever length.
SELECT indexrelid::regclass FROM pg_index JOIN pg_class x ON x.oid = indexrelid JOIN pg_am m ON m.oid = relam
WHERE relnamespace = 'envrt'::regnamespace AND m.amname = 'hash' ORDER BY 1;
SELECT pg_temp.try('envrt.environment_leases', jsonb_build_object('provider_lease_id', 'i', 'metadata', jsonb_build_object('image', pg_temp.noise(100000)))) AS long_image;
ROLLBACK;

-- Whatever is deleted, no table is read from its beginning to its end.
\connect
BEGIN;
SET LOCAL enable_seqscan = off;
INSERT INTO envrt.companies (name) VALUES ('catalog') RETURNING id AS company \gset
INSERT INTO envrt.agents (company_id, name) VALUES (:'company', 'a') RETURNING id AS agent \gset
INSERT INTO envrt.heartbeat_runs (company_id, agent_id) VALUES (:'company', :'agent') RETURNING id AS run \gset
INSERT INTO envrt.execution_workspaces (company_id, project_id, mode, strategy_type, name) VALUES (:'company', gen_random_uuid(), 'm', 's', 'n') RETURNING id AS workspace \gset
INSERT INTO envrt.environments (company_id, name, driver) VALUES (:'company', 'e', 'sandbox') RETURNING id AS environment \gset
INSERT INTO envrt.company_secrets (company_id, name, created_by_agent_id) VALUES (:'company', 's', :'agent') RETURNING id AS secret \gset
DELETE FROM envrt.environments WHERE id = :'environment';
DELETE FROM envrt.execution_workspaces WHERE id = :'workspace';
DELETE FROM envrt.company_secrets WHERE id = :'secret';
DELETE FROM envrt.heartbeat_runs WHERE id = :'run';
DELETE FROM envrt.agents WHERE id = :'agent';
DELETE FROM envrt.companies WHERE id = :'company';
SELECT relname, seq_scan FROM pg_stat_xact_user_tables WHERE schemaname = 'envrt' AND seq_scan > 0 ORDER BY 1;
ROLLBACK;

-- Ids that are compared for equality only are in a collation that no library of the system changes.
SELECT a.attrelid::regclass::text COLLATE "C" AS relation, a.attname
FROM pg_attribute a JOIN pg_class t ON t.oid = a.attrelid JOIN pg_collation c ON c.oid = a.attcollation
WHERE t.relnamespace = 'envrt'::regnamespace AND t.relkind = 'r' AND c.collname = 'C' AND a.attnum > 0
ORDER BY 1, 2;

-- Functions by name, arguments, result, volatility and parallel safety.
SELECT p.proname, pg_get_function_arguments(p.oid) AS arguments, pg_get_function_result(p.oid) AS result,
       p.provolatile, p.proparallel
FROM pg_depend d JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid
WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
  AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'envrt')
  AND p.pronamespace <> 'envrt'::regnamespace
ORDER BY 1;

-- Settings: nothing that reaches the outside is for a session to change.
SELECT name, unit, context, boot_val FROM pg_settings WHERE name LIKE 'envrt.%' ORDER BY name;
SET envrt.ssh_connect_timeout = '1s';

-- The shared tables' data goes with pg_dump.
SELECT count(*) FROM pg_extension, unnest(extconfig) WHERE extname = 'envrt';

-- What a setting can't mean is refused where it is written.
ALTER SYSTEM SET envrt.allowed_hosts = '127.0.0.1/33';
ALTER SYSTEM SET envrt.allowed_hosts = 'http://x';
ALTER SYSTEM SET envrt.allowed_hosts = '127.0.0.1:22';
ALTER SYSTEM SET envrt.runtime_api_candidates = 'http://a, ftp://b';
