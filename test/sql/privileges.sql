-- EXECUTE is the right to use a function for every company whose rows the caller can see.
\set helpers `echo "$PG_ABS_SRCDIR/lib/helpers.psql"`
\set ECHO none
\i :helpers

SELECT company_id, run_id FROM make_run('privileges') \gset
SELECT company_id AS other_company, run_id AS other_run FROM make_run('hidden') \gset
SELECT id AS environment FROM envrt_ensure_local_environment(:'company_id') \gset
SELECT id AS other_environment FROM envrt_ensure_local_environment(:'other_company') \gset
SELECT id AS other_lease FROM envrt_acquire_lease(:'other_company', :'other_environment', :'other_run') \gset
SELECT envrt_create_secret(:'other_company', 'hidden', 'value') AS other_secret \gset
CREATE ROLE regress_envrt_app;

-- nothing at all without a grant
SET ROLE regress_envrt_app;
SELECT attempt(format('SELECT envrt_acquire_lease(%L, %L, %L)', :'company_id', :'environment', :'run_id'));
SELECT attempt('SELECT envrt_normalize_config(''local'', ''{}'')');
SELECT attempt('SELECT * FROM envrt.environment_leases');
SELECT attempt('SELECT * FROM envrt.stat_driver_host');
RESET ROLE;

-- EXECUTE without seeing any row is of no use
GRANT EXECUTE ON FUNCTION envrt_acquire_lease, envrt_release_leases, envrt_release_lease, envrt_ensure_local_environment,
    envrt_create_environment, envrt_create_secret, envrt_rotate_secret, envrt_probe, envrt_probe_config TO regress_envrt_app;
SET ROLE regress_envrt_app;
SELECT attempt(format('SELECT envrt_acquire_lease(%L, %L, %L)', :'company_id', :'environment', :'run_id'));
SELECT attempt(format('SELECT envrt_release_leases(%L)', :'run_id'));
RESET ROLE;

-- with SELECT it is: no right to write the tables is needed, nor given
GRANT USAGE ON SCHEMA envrt TO regress_envrt_app;
GRANT SELECT ON envrt.companies, envrt.environments, envrt.heartbeat_runs, envrt.environment_leases TO regress_envrt_app;
GRANT SELECT (id) ON envrt.company_secrets TO regress_envrt_app;
SET ROLE regress_envrt_app;
-- one column of a table is not its rows
SELECT attempt(format('SELECT envrt_rotate_secret(%L, ''x'')', :'other_secret'));
RESET ROLE;
GRANT SELECT ON envrt.company_secrets TO regress_envrt_app;
SET ROLE regress_envrt_app;
SELECT status FROM envrt_acquire_lease(:'company_id', :'environment', :'run_id');
SELECT status FROM envrt_release_leases(:'run_id');
SELECT envrt_create_secret(:'company_id', 'app', 'value') IS NOT NULL AS created;
SELECT attempt('UPDATE envrt.environment_leases SET status = status');
SELECT attempt('SELECT * FROM envrt.company_secret_versions');
SELECT current_user, current_setting('search_path');
RESET ROLE;

-- row-level security: what the caller can't see does not exist for it
ALTER TABLE envrt.companies ENABLE ROW LEVEL SECURITY;
ALTER TABLE envrt.environments ENABLE ROW LEVEL SECURITY;
ALTER TABLE envrt.heartbeat_runs ENABLE ROW LEVEL SECURITY;
ALTER TABLE envrt.environment_leases ENABLE ROW LEVEL SECURITY;
ALTER TABLE envrt.company_secrets ENABLE ROW LEVEL SECURITY;
CREATE POLICY tenant ON envrt.companies FOR SELECT TO regress_envrt_app USING (id = current_setting('app.company', true)::uuid);
CREATE POLICY tenant ON envrt.environments FOR SELECT TO regress_envrt_app USING (company_id = current_setting('app.company', true)::uuid);
CREATE POLICY tenant ON envrt.heartbeat_runs FOR SELECT TO regress_envrt_app USING (company_id = current_setting('app.company', true)::uuid);
CREATE POLICY tenant ON envrt.environment_leases FOR SELECT TO regress_envrt_app USING (company_id = current_setting('app.company', true)::uuid);
CREATE POLICY tenant ON envrt.company_secrets FOR SELECT TO regress_envrt_app USING (false);
SELECT set_config('app.company', :'company_id', false) IS NOT NULL AS set;
SET ROLE regress_envrt_app;
SELECT status FROM envrt_acquire_lease(:'company_id', :'environment', :'run_id');
SELECT regexp_replace(attempt(format('SELECT envrt_acquire_lease(%L, %L, %L)', :'other_company', :'other_environment', :'other_run')), '"[^"]*"', '<id>');
SELECT regexp_replace(attempt(format('SELECT envrt_acquire_lease(%L, %L, %L)', :'company_id', :'environment', :'other_run')), '"[^"]*"', '<id>');
SELECT regexp_replace(attempt(format('SELECT envrt_ensure_local_environment(%L)', :'other_company')), '"[^"]*"', '<id>');
SELECT regexp_replace(attempt(format('SELECT envrt_create_environment(%L, ''x'', ''sandbox'', ''{"provider": "e2b"}'')', :'other_company')), '"[^"]*"', '<id>');
SELECT regexp_replace(attempt(format('SELECT envrt_create_secret(%L, ''x'', ''y'')', :'other_company')), '"[^"]*"', '<id>');
SELECT regexp_replace(attempt(format('SELECT envrt_rotate_secret(%L, ''y'')', :'other_secret')), '"[^"]*"', '<id>');
SELECT regexp_replace(attempt(format('SELECT envrt_probe(%L)', :'other_environment')), '"[^"]*"', '<id>');
SELECT regexp_replace(attempt(format('SELECT envrt_release_lease(%L)', :'other_lease')), '"[^"]*"', '<id>');
SELECT count(*) FROM envrt_release_leases(:'other_run');
-- a secret that it can't see is not for it to try
SELECT regexp_replace(attempt(format('SELECT envrt_probe_config(%L, ''ssh'', %L)', :'company_id', jsonb_build_object('host', 'h', 'username', 'u',
    'remoteWorkspacePath', '/w', 'privateKeySecretRef', jsonb_build_object('type', 'secret_ref', 'secretId', :'other_secret')))), '"[^"]*"', '<id>');
SELECT count(*) FROM envrt_release_leases(:'run_id');
RESET ROLE;
SELECT status FROM envrt.environment_leases WHERE id = :'other_lease';

-- a policy finds what it needs by the caller's search_path
CREATE TABLE regress.memberships (company_id uuid);
INSERT INTO regress.memberships VALUES (:'company_id');
GRANT SELECT ON regress.memberships TO regress_envrt_app;
CREATE FUNCTION regress.mine(company uuid) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RETURN EXISTS (SELECT FROM memberships m WHERE m.company_id = company); END $$;
CREATE POLICY by_membership ON envrt.heartbeat_runs AS RESTRICTIVE FOR SELECT TO regress_envrt_app USING (regress.mine(company_id));
SET ROLE regress_envrt_app;
SELECT status FROM envrt_acquire_lease(:'company_id', :'environment', :'run_id');
SELECT count(*) FROM envrt_release_leases(:'run_id');
RESET ROLE;
DROP POLICY by_membership ON envrt.heartbeat_runs;
DROP FUNCTION regress.mine(uuid);
DROP TABLE regress.memberships;

-- who may put a trigger on the table gets no rights by it
GRANT TRIGGER ON envrt.environment_leases TO regress_envrt_app;
GRANT CREATE ON SCHEMA regress TO regress_envrt_app;
SET ROLE regress_envrt_app;
CREATE FUNCTION regress.escalate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN EXECUTE 'ALTER ROLE regress_envrt_app SUPERUSER'; RETURN new; END $$;
CREATE TRIGGER escalate BEFORE INSERT ON envrt.environment_leases FOR EACH ROW EXECUTE FUNCTION regress.escalate();
SELECT attempt(format('SELECT envrt_acquire_lease(%L, %L, %L)', :'company_id', :'environment', :'run_id'));
SELECT attempt(format('SELECT envrt_release_leases(%L)', :'run_id'));
RESET ROLE;
SELECT rolsuper FROM pg_roles WHERE rolname = 'regress_envrt_app';
DROP TRIGGER escalate ON envrt.environment_leases;
DROP FUNCTION regress.escalate();
REVOKE CREATE ON SCHEMA regress FROM regress_envrt_app;

-- a trigger runs with the table owner's rights and does not find the caller's objects
CREATE TABLE public.seen (who name, path text);
CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.seen VALUES (current_user, current_setting('search_path'));
    RETURN new;
END $$;
CREATE TRIGGER note AFTER INSERT ON envrt.environment_leases FOR EACH ROW EXECUTE FUNCTION public.note();
SET ROLE regress_envrt_app;
SELECT status FROM envrt_acquire_lease(:'company_id', :'environment', :'run_id');
SELECT count(*) FROM envrt_release_leases(:'run_id');
RESET ROLE;
SELECT who = (SELECT relowner::regrole::name FROM pg_class WHERE oid = 'envrt.environment_leases'::regclass) AS owner, path FROM public.seen;

DROP TRIGGER note ON envrt.environment_leases;
DROP FUNCTION public.note();
DROP TABLE public.seen;
DROP POLICY tenant ON envrt.companies;
DROP POLICY tenant ON envrt.environments;
DROP POLICY tenant ON envrt.heartbeat_runs;
DROP POLICY tenant ON envrt.environment_leases;
DROP POLICY tenant ON envrt.company_secrets;
ALTER TABLE envrt.companies DISABLE ROW LEVEL SECURITY;
ALTER TABLE envrt.environments DISABLE ROW LEVEL SECURITY;
ALTER TABLE envrt.heartbeat_runs DISABLE ROW LEVEL SECURITY;
ALTER TABLE envrt.environment_leases DISABLE ROW LEVEL SECURITY;
ALTER TABLE envrt.company_secrets DISABLE ROW LEVEL SECURITY;
DROP OWNED BY regress_envrt_app;
DROP ROLE regress_envrt_app;
