-- The runs' trigger: whoever ends or deletes a run ends its leases, in the same transaction.  And renew.
\set helpers `echo "$PG_ABS_SRCDIR/lib/helpers.psql"`
\set ECHO none
\i :helpers

SELECT company_id, run_id FROM make_run('runs') \gset
SELECT id AS environment FROM envrt_ensure_local_environment(:'company_id') \gset
INSERT INTO envrt.environments (id, company_id, name, driver, config)
VALUES ('50000000-0000-4000-8000-000000000001', :'company_id', 'fake', 'sandbox', '{"provider": "fake"}');
SELECT agent_id FROM envrt.heartbeat_runs WHERE id = :'run_id' \gset

SELECT tgname, pg_get_triggerdef(oid), obj_description(oid, 'pg_trigger') FROM pg_trigger
WHERE tgrelid = 'envrt.heartbeat_runs'::regclass AND NOT tgisinternal ORDER BY 1;

-- every end of a run, with two leases each
CREATE TABLE regress.ends AS
SELECT s.status, s.error, gen_random_uuid() AS run
FROM (VALUES ('succeeded', NULL), ('failed', 'out of luck'), ('failed', NULL), ('cancelled', 'by a person'), ('timed_out', 'too slow'), ('queued', NULL)) AS s(status, error);
INSERT INTO envrt.heartbeat_runs (id, company_id, agent_id, status) SELECT run, :'company_id', :'agent_id', 'running' FROM regress.ends;
SELECT count(envrt_acquire_lease(:'company_id', e, run)) FROM regress.ends, unnest(ARRAY[:'environment', '50000000-0000-4000-8000-000000000001']::uuid[]) e;
UPDATE envrt.heartbeat_runs r SET status = e.status, error = e.error FROM regress.ends e WHERE r.id = e.run;
SELECT e.status AS run, e.error, l.provider, l.status, l.failure_reason, l.cleanup_status, l.released_at IS NOT NULL AS released
FROM regress.ends e JOIN envrt.environment_leases l ON l.heartbeat_run_id = e.run ORDER BY 1, 2, 3;

-- with the transaction: rolled back with it
SELECT id AS lease FROM envrt_acquire_lease(:'company_id', :'environment', :'run_id') \gset
BEGIN;
UPDATE envrt.heartbeat_runs SET status = 'succeeded' WHERE id = :'run_id';
SELECT status FROM envrt.environment_leases WHERE id = :'lease';
ROLLBACK;
SELECT status FROM envrt.environment_leases WHERE id = :'lease';
-- other changes leave it alone
UPDATE envrt.heartbeat_runs SET status = 'running', last_useful_action_at = now(), error = 'not yet' WHERE id = :'run_id';
SELECT status FROM envrt.environment_leases WHERE id = :'lease';
-- a deleted run
DELETE FROM envrt.heartbeat_runs WHERE id = :'run_id';
SELECT status, heartbeat_run_id FROM envrt.environment_leases WHERE id = :'lease';

-- who may change the run needs no right on leases
INSERT INTO envrt.heartbeat_runs (id, company_id, agent_id, status) VALUES (:'run_id', :'company_id', :'agent_id', 'running');
SELECT id AS lease FROM envrt_acquire_lease(:'company_id', :'environment', :'run_id') \gset
CREATE ROLE regress_envrt_runner;
GRANT USAGE ON SCHEMA envrt TO regress_envrt_runner;
GRANT SELECT, UPDATE ON envrt.heartbeat_runs TO regress_envrt_runner;
SET ROLE regress_envrt_runner;
UPDATE envrt.heartbeat_runs SET status = 'cancelled' WHERE id = :'run_id';
SELECT current_user;
SELECT attempt('SELECT * FROM envrt.environment_leases');
RESET ROLE;
SELECT status FROM envrt.environment_leases WHERE id = :'lease';
DROP OWNED BY regress_envrt_runner;
DROP ROLE regress_envrt_runner;

-- any table of that shape
CREATE TYPE regress.job_status AS ENUM ('running', 'failed', 'done', 'succeeded');
CREATE TABLE regress."Jobs" (id uuid PRIMARY KEY, status regress.job_status);
SELECT envrt_attach_runs('regress."Jobs"');
SELECT envrt_attach_runs('regress."Jobs"');
UPDATE envrt.heartbeat_runs SET status = 'running' WHERE id = :'run_id';
SELECT id AS lease FROM envrt_acquire_lease(:'company_id', :'environment', :'run_id') \gset
INSERT INTO regress."Jobs" VALUES (:'run_id', 'running'), (gen_random_uuid(), NULL);
UPDATE regress."Jobs" SET status = 'done';
SELECT status FROM envrt.environment_leases WHERE id = :'lease';
UPDATE regress."Jobs" SET status = 'failed';
SELECT status, failure_reason FROM envrt.environment_leases WHERE id = :'lease';
SELECT id AS lease FROM envrt_acquire_lease(:'company_id', :'environment', :'run_id') \gset
SELECT envrt_detach_runs('regress."Jobs"');
SELECT envrt_detach_runs('regress."Jobs"');
DELETE FROM regress."Jobs";
SELECT status FROM envrt.environment_leases WHERE id = :'lease';
CREATE TABLE regress.no_runs (id integer, status text);
SELECT attempt($$SELECT envrt_attach_runs('regress.no_runs')$$);
CREATE TABLE regress.no_status (id uuid);
SELECT attempt($$SELECT envrt_attach_runs('regress.no_status')$$);
CREATE TABLE regress.number_status (id uuid, status integer);
SELECT attempt($$SELECT envrt_attach_runs('regress.number_status')$$);
-- what keeps its rows in several tables, or elsewhere
CREATE TABLE regress.parts (id uuid, status text) PARTITION BY LIST (status);
CREATE TABLE regress.part_running PARTITION OF regress.parts FOR VALUES IN ('running');
CREATE TABLE regress.parent (id uuid, status text);
CREATE TABLE regress.child () INHERITS (regress.parent);
CREATE VIEW regress.view AS SELECT id, status FROM regress.parent;
CREATE MATERIALIZED VIEW regress.matview AS SELECT id, status FROM regress.parent;
SELECT t, attempt(format('SELECT envrt_attach_runs(%L)', 'regress.' || t)) FROM unnest(ARRAY['parts', 'part_running', 'parent', 'view', 'matview']) t;
-- a table that inherits is one of its own, also when it is written by way of its parent
SELECT envrt_attach_runs('regress.child');
UPDATE envrt.heartbeat_runs SET status = 'running' WHERE id = :'run_id';
CREATE FUNCTION regress.leased() RETURNS uuid LANGUAGE plpgsql AS $$
DECLARE
    run uuid;
BEGIN
    INSERT INTO envrt.heartbeat_runs (company_id, agent_id, status) SELECT company_id, agent_id, 'running' FROM envrt.heartbeat_runs WHERE id = current_setting('regress.run')::uuid RETURNING id INTO run;
    PERFORM envrt_acquire_lease(company_id, current_setting('regress.environment')::uuid, run) FROM envrt.heartbeat_runs WHERE id = run;
    INSERT INTO regress.child VALUES (run, 'running');
    RETURN run;
END $$;
SET regress.run = :'run_id';
SET regress.environment = :'environment';
SELECT regress.leased() AS run \gset
UPDATE regress.parent SET status = 'failed' WHERE id = :'run';
SELECT status FROM envrt.environment_leases WHERE heartbeat_run_id = :'run';
SELECT regress.leased() AS run \gset
DELETE FROM regress.parent WHERE id = :'run';
SELECT status FROM envrt.environment_leases WHERE heartbeat_run_id = :'run';
SELECT regress.leased() AS run \gset
BEGIN;
TRUNCATE regress.child;
SELECT status FROM envrt.environment_leases WHERE heartbeat_run_id = :'run';
ROLLBACK;
SELECT status FROM envrt.environment_leases WHERE heartbeat_run_id = :'run';
TRUNCATE regress.parent;
SELECT status FROM envrt.environment_leases WHERE heartbeat_run_id = :'run';
ALTER TABLE regress.child ADD PRIMARY KEY (id), ADD COLUMN of uuid;
CREATE TABLE regress.groups (id uuid PRIMARY KEY);
ALTER TABLE regress.child ADD FOREIGN KEY (of) REFERENCES regress.groups;
SELECT regress.leased() AS run \gset
SET client_min_messages = warning;
TRUNCATE regress.groups CASCADE;
RESET client_min_messages;
SELECT status FROM envrt.environment_leases WHERE heartbeat_run_id = :'run';
-- other runs' leases are left alone
SELECT id AS lease FROM envrt_acquire_lease(:'company_id', :'environment', :'run_id') \gset
SELECT regress.leased() AS run \gset
TRUNCATE regress.child;
SELECT (SELECT status FROM envrt.environment_leases WHERE heartbeat_run_id = :'run'), (SELECT status FROM envrt.environment_leases WHERE id = :'lease') AS of_another;
DROP FUNCTION regress.leased();
SELECT attempt('SELECT envrt_attach_runs(NULL)');
SELECT attempt('SELECT envrt_attach_runs(0)');
SELECT attempt('SELECT envrt_on_heartbeat_run()');
CREATE TRIGGER wrong BEFORE INSERT ON regress.no_runs FOR EACH ROW EXECUTE FUNCTION envrt_on_heartbeat_run();
SELECT attempt('INSERT INTO regress.no_runs VALUES (1)');

-- renew
SELECT expires_at - updated_at AS expires_in, last_used_at = updated_at AS used, status FROM envrt_renew_lease(:'lease', '1 hour');
SELECT attempt(format('SELECT envrt_renew_lease(%L, %L)', :'lease', i)) FROM unnest(ARRAY['0', '-1 s']) i;
SELECT attempt(format('SELECT envrt_renew_lease(%L, NULL)', :'lease'));
SELECT attempt('SELECT envrt_renew_lease(NULL, ''1 s'')');
SELECT attempt('SELECT envrt_renew_lease(''00000000-0000-4000-8000-00000000dead'', ''1 s'')');
SELECT count(*) FROM envrt_release_lease(:'lease');
SELECT regexp_replace(attempt(format('SELECT envrt_renew_lease(%L, ''1 s'')', :'lease')), '"[^"]*"', '<id>');

SET client_min_messages = warning;
DROP TABLE regress."Jobs", regress.no_runs, regress.no_status, regress.ends, regress.parts, regress.parent, regress.child, regress.groups CASCADE;
RESET client_min_messages;
DROP TYPE regress.job_status;
