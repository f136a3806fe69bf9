-- Functions about what is behind a lease, where there is nothing behind it or what is asked is not possible.
-- With a provider they are tested in test/t.
\set helpers `echo "$PG_ABS_SRCDIR/lib/helpers.psql"`
\set ECHO none
\i :helpers

SELECT company_id, run_id FROM make_run('provider leases') \gset
SELECT id AS local FROM envrt_ensure_local_environment(:'company_id') \gset
INSERT INTO envrt.environments (company_id, name, driver, config)
VALUES (:'company_id', 'fake', 'sandbox', '{"provider": "fake"}') RETURNING id AS fake \gset
INSERT INTO envrt.environments (company_id, name, driver, config)
VALUES (:'company_id', 'unknown', 'sandbox', '{"provider": "no-such-provider"}') RETURNING id AS unknown \gset
INSERT INTO envrt.environments (company_id, name, driver, config)
VALUES (:'company_id', 'blind', 'sandbox', '{"provider": "journal", "leasePolicy": "for ever"}') RETURNING id AS wrong \gset
SELECT id AS local_lease FROM envrt_acquire_lease(:'company_id', :'local', :'run_id') \gset
SELECT id AS fake_lease FROM envrt_acquire_lease(:'company_id', :'fake', :'run_id') \gset
\set nobody 00000000-0000-4000-8000-000000000000

-- lease policies are part of the config
SELECT envrt_normalize_config('sandbox', jsonb_build_object('provider', 'journal', 'leasePolicy', p))
FROM unnest(ARRAY['ephemeral', 'reuse_by_environment', 'reuse_by_execution_workspace', 'retain_on_failure']) p;
SELECT attempt($$SELECT envrt_normalize_config('sandbox', '{"provider": "journal", "leasePolicy": "for ever"}')$$);
SELECT attempt($$SELECT envrt_normalize_config('sandbox', '{"provider": "journal", "leasePolicy": 1}')$$);
SELECT attempt(format('SELECT envrt_acquire_lease(%L, %L, %L)', :'company_id', :'wrong', :'run_id'));

-- a provider that is none: nothing is left in the ledger
SELECT attempt(format('SELECT envrt_acquire_lease(%L, %L, %L)', :'company_id', :'unknown', :'run_id'));
SELECT count(*) FROM envrt.provider_leases WHERE environment_id = :'unknown';
SELECT ok, driver, summary, details FROM envrt_probe(:'unknown');

-- resume and destroy: drivers that have neither
SELECT attempt(format('SELECT envrt_resume_lease(%L)', :'local_lease'));
SELECT attempt(format('SELECT envrt_destroy_lease(%L)', :'local_lease'));
SELECT attempt(format('SELECT envrt_resume_lease(%L)', :'fake_lease'));
SELECT attempt(format('SELECT envrt_destroy_lease(%L)', :'fake_lease'));
SELECT regexp_replace(attempt(format('SELECT envrt_destroy_lease(%L)', :'nobody')), '[0-9a-f]{8}-[0-9a-f-]*', '<id>');
SELECT attempt('SELECT envrt_destroy_lease(NULL)');

-- waiting for a cleanup
SELECT regexp_replace(attempt(format('SELECT envrt_await_cleanup(%L)', :'fake_lease')), '[0-9a-f]{8}-[0-9a-f-]*', '<id>');
SELECT count(*) FROM envrt_release_leases(:'run_id');
SELECT envrt_await_cleanup(:'fake_lease'), envrt_await_cleanup(:'local_lease');
SELECT regexp_replace(attempt(format('SELECT envrt_await_cleanup(%L)', :'nobody')), '[0-9a-f]{8}-[0-9a-f-]*', '<id>');
SELECT attempt(format($$SELECT envrt_await_cleanup(%L, '-1 s')$$, :'fake_lease'));
SELECT attempt(format('SELECT envrt_await_cleanup(%L, NULL)', :'fake_lease'));

-- the ledger
SELECT regexp_replace(attempt(format('SELECT envrt_retry_cleanup(%L)', :'fake_lease')), '[0-9a-f]{8}-[0-9a-f-]*', '<id>');
SELECT regexp_replace(attempt(format('SELECT envrt_forget_provider_lease(%L)', :'nobody')), '[0-9a-f]{8}-[0-9a-f-]*', '<id>');
SELECT attempt($$SELECT envrt_claim_instance('mine')$$);
SELECT envrt_claim_instance('take_over'), envrt_claim_instance('forget');
SELECT (o).system_identifier = (SELECT system_identifier FROM pg_control_system()) AS system,
    (o).database_id = (SELECT oid FROM pg_database WHERE datname = current_database()) AS database, (o).timeline > 0 AS timeline
FROM envrt.own_instance() o;

-- leases after the commit
SELECT envrt_request_lease(:'company_id', :'fake', :'run_id', expires_in => '1 hour') AS requested \gset
SELECT id = :'requested' AS the_one, status, provider, expires_at BETWEEN now() + '59 min' AND now() + '61 min' AS expires
FROM envrt_await_lease(:'requested');
SELECT count(*) FROM envrt.lease_requests;
-- taken back by a rollback
BEGIN;
SELECT envrt_request_lease(:'company_id', :'local', :'run_id') AS requested \gset
SELECT regexp_replace(attempt(format('SELECT envrt_await_lease(%L)', :'requested')), '[0-9a-f]{8}-[0-9a-f-]*', '<id>');
ROLLBACK;
SELECT regexp_replace(attempt(format('SELECT envrt_await_lease(%L)', :'requested')), '[0-9a-f]{8}-[0-9a-f-]*', '<id>');
-- what goes wrong at once, and later
SELECT regexp_replace(attempt(format('SELECT envrt_request_lease(%L, %L, %L)', :'company_id', :'nobody', :'run_id')), '[0-9a-f]{8}-[0-9a-f-]*', '<id>');
SELECT envrt_request_lease(:'company_id', :'unknown', :'run_id') AS requested \gset
SELECT attempt(format('SELECT envrt_await_lease(%L)', :'requested'));
SELECT attempt(format('SELECT envrt_await_lease(%L)', :'requested'));
SELECT state, sqlstate FROM envrt.lease_requests WHERE lease_id = :'requested';
-- by a trigger: a run that begins and names its environment gets a lease for it
CREATE FUNCTION regress.lease_for_run() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM public.envrt_request_lease(NEW.company_id, (NEW.context_snapshot #>> '{paperclipEnvironment,id}')::uuid, NEW.id);
    RETURN NULL;
END $$;
CREATE TRIGGER lease_for_run AFTER UPDATE OF status ON envrt.heartbeat_runs FOR EACH ROW
WHEN (NEW.status = 'running' AND OLD.status <> 'running' AND NEW.context_snapshot #>> '{paperclipEnvironment,id}' IS NOT NULL)
EXECUTE FUNCTION regress.lease_for_run();
INSERT INTO envrt.heartbeat_runs (company_id, agent_id, context_snapshot)
SELECT company_id, agent_id, jsonb_build_object('paperclipEnvironment', jsonb_build_object('id', :'fake'))
FROM envrt.heartbeat_runs WHERE id = :'run_id' RETURNING id AS triggered \gset
UPDATE envrt.heartbeat_runs SET status = 'running' WHERE id = :'triggered';
DO $$ BEGIN WHILE EXISTS (SELECT FROM envrt.lease_requests WHERE state = 'queued') LOOP PERFORM pg_sleep(0.01); END LOOP; END $$;
SELECT status, provider FROM envrt.environment_leases WHERE heartbeat_run_id = :'triggered';
UPDATE envrt.heartbeat_runs SET status = 'succeeded' WHERE id = :'triggered';
SELECT status, provider FROM envrt.environment_leases WHERE heartbeat_run_id = :'triggered';
DROP TRIGGER lease_for_run ON envrt.heartbeat_runs;

-- rights
CREATE ROLE regress_envrt_ledger;
GRANT USAGE ON SCHEMA envrt TO regress_envrt_ledger;
GRANT EXECUTE ON FUNCTION envrt_claim_instance(text) TO regress_envrt_ledger;
SET ROLE regress_envrt_ledger;
SELECT attempt($$SELECT envrt_claim_instance('forget')$$);
SELECT attempt('SELECT * FROM envrt.provider_leases');
SELECT attempt('SELECT * FROM envrt.lease_requests');
SELECT attempt('SELECT * FROM envrt.stat_cleanup');
RESET ROLE;
DROP OWNED BY regress_envrt_ledger;
DROP ROLE regress_envrt_ledger;
