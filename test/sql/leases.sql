-- Acquire and release: rules, transactions, bad input.
\set helpers `echo "$PG_ABS_SRCDIR/lib/helpers.psql"`
\set ECHO none
\i :helpers

SELECT company_id, run_id FROM make_run('leases') \gset
SELECT company_id AS other_company, run_id AS other_run FROM make_run('other') \gset
SELECT id AS environment FROM envrt_ensure_local_environment(:'company_id') \gset
SELECT id AS other_environment FROM envrt_ensure_local_environment(:'other_company') \gset
\set missing '00000000-0000-4000-8000-00000000dead'

-- who may lease what
SELECT regexp_replace(attempt(format('SELECT envrt_acquire_lease(%L, %L, %L)', c, e, r)), '[0-9a-f]{8}-[0-9a-f-]{27}', '<id>', 'g')
FROM (VALUES (1, :'company_id', :'missing', :'run_id'),
             (2, :'missing', :'environment', :'run_id'),
             (3, :'other_company', :'environment', :'run_id'),
             (4, :'company_id', :'other_environment', :'run_id'),
             (5, :'company_id', :'environment', :'missing'),
             (6, :'company_id', :'environment', :'other_run')) AS t(n, c, e, r)
ORDER BY n;
UPDATE envrt.environments SET status = 'archived' WHERE id = :'environment';
SELECT attempt(format('SELECT envrt_acquire_lease(%L, %L, %L)', :'company_id', :'environment', :'run_id'));
UPDATE envrt.environments SET status = 'active' WHERE id = :'environment';

-- a run that is over gets nothing
BEGIN;
UPDATE envrt.heartbeat_runs SET status = 'succeeded' WHERE id = :'run_id';
SELECT regexp_replace(attempt(format('SELECT envrt_acquire_lease(%L, %L, %L)', :'company_id', :'environment', :'run_id')), '"[^"]*"', '<id>');
UPDATE envrt.heartbeat_runs SET status = 'failed' WHERE id = :'run_id';
SELECT left(attempt(format('SELECT envrt_acquire_lease(%L, %L, %L)', :'company_id', :'environment', :'run_id')), 5);
UPDATE envrt.heartbeat_runs SET status = 'cancelled' WHERE id = :'run_id';
SELECT left(attempt(format('SELECT envrt_acquire_lease(%L, %L, %L)', :'company_id', :'environment', :'run_id')), 5);
UPDATE envrt.heartbeat_runs SET status = 'timed_out' WHERE id = :'run_id';
SELECT left(attempt(format('SELECT envrt_acquire_lease(%L, %L, %L)', :'company_id', :'environment', :'run_id')), 5);
UPDATE envrt.heartbeat_runs SET status = 'queued' WHERE id = :'run_id';
SELECT status FROM envrt_acquire_lease(:'company_id', :'environment', :'run_id');
ROLLBACK;
SELECT count(*) FROM envrt.environment_leases WHERE heartbeat_run_id = :'run_id';

-- drivers and providers that are not there
INSERT INTO envrt.environments (id, company_id, name, driver, config) VALUES
    ('20000000-0000-4000-8000-000000000001', :'company_id', 'p', 'plugin', '{"pluginKey": "k", "driverKey": "d"}'),
    ('20000000-0000-4000-8000-000000000002', :'company_id', 's', 'sandbox', '{"provider": "e2b"}'),
    ('20000000-0000-4000-8000-000000000003', :'company_id', 'b', 'sandbox', '{"provider": "fake", "image": " "}'),
    ('20000000-0000-4000-8000-000000000004', :'company_id', 'd', 'sandbox', '{"provider": " "}');
SELECT attempt(format('SELECT envrt_acquire_lease(%L, %L, %L)', :'company_id', id, :'run_id'))
FROM envrt.environments WHERE id::text LIKE '20000000%' AND name <> 'd' ORDER BY id;
SELECT metadata FROM envrt_acquire_lease(:'company_id', '20000000-0000-4000-8000-000000000004', :'run_id');
SELECT cleanup_status FROM envrt_release_leases(:'run_id');

-- NULL and absurd arguments
SELECT attempt(format('SELECT envrt_acquire_lease(NULL, %L, %L)', :'environment', :'run_id'));
SELECT attempt(format('SELECT envrt_acquire_lease(%L, NULL, %L)', :'company_id', :'run_id'));
SELECT attempt(format('SELECT envrt_acquire_lease(%L, %L, NULL)', :'company_id', :'environment'));
SELECT attempt(format('SELECT envrt_acquire_lease(%L, %L, %L, expires_in => %L)', :'company_id', :'environment', :'run_id', x))
FROM unnest(ARRAY['-1 s', '0', '1000000 years']) x;
SELECT attempt('SELECT * FROM envrt_release_leases(NULL)');
SELECT attempt(format('SELECT * FROM envrt_release_leases(%L, NULL)', :'run_id'));
SELECT attempt(format('SELECT * FROM envrt_release_leases(%L, %L)', :'run_id', s))
FROM unnest(ARRAY['active', 'retained', '', 'RELEASED']) s;
SELECT attempt('SELECT * FROM envrt_release_lease(NULL)');
SELECT attempt(format('SELECT * FROM envrt_release_lease(%L)', :'missing'));
SELECT count(*) FROM envrt_release_leases(:'missing');

-- everything an acquire can carry
INSERT INTO envrt.execution_workspaces (id, company_id, project_id, mode, strategy_type, name) VALUES
    ('30000000-0000-4000-8000-000000000001', :'company_id', gen_random_uuid(), 'isolated_workspace', 'git_worktree', 'w'),
    ('30000000-0000-4000-8000-000000000002', :'other_company', gen_random_uuid(), 'shared_workspace', 'project_primary', 'w');
SELECT execution_workspace_id, issue_id, metadata, expires_at - acquired_at AS expires_in
FROM envrt_acquire_lease(:'company_id', :'environment', :'run_id', issue_id => '40000000-0000-4000-8000-000000000001',
                         execution_workspace_id => '30000000-0000-4000-8000-000000000001', expires_in => '90 minutes');
SELECT metadata
FROM envrt_acquire_lease(:'company_id', :'environment', :'run_id', NULL, '30000000-0000-4000-8000-000000000001', 'shared_workspace');
SELECT attempt(format('SELECT envrt_acquire_lease(%L, %L, %L, NULL, %L)', :'company_id', :'environment', :'run_id', w))
FROM unnest(ARRAY['30000000-0000-4000-8000-000000000002', :'missing']) w;
SELECT count(*) FROM envrt_release_leases(:'run_id');

-- one run's leases only; those of others stay
SELECT id AS mine FROM envrt_acquire_lease(:'company_id', :'environment', :'run_id') \gset
SELECT id AS theirs FROM envrt_acquire_lease(:'other_company', :'other_environment', :'other_run') \gset
SELECT id = :'mine' AS mine, status FROM envrt_release_leases(:'run_id');
SELECT status FROM envrt.environment_leases WHERE id = :'theirs';

-- release of one lease: by id, once
SELECT status, released_at IS NOT NULL AS released FROM envrt_release_lease(:'theirs', 'expired');
SELECT count(*) FROM envrt_release_lease(:'theirs');

-- failed: the caller's reason, or the sandbox driver's; retained when the policy says so
SELECT id FROM envrt_acquire_lease(:'company_id', :'environment', :'run_id') \gset
SELECT status, failure_reason FROM envrt_release_leases(:'run_id', 'failed', 'out of luck');
SELECT id FROM envrt_acquire_lease(:'company_id', '20000000-0000-4000-8000-000000000004', :'run_id') \gset
SELECT status, failure_reason, cleanup_status FROM envrt_release_lease(:'id', 'failed');
SELECT id FROM envrt_acquire_lease(:'company_id', :'environment', :'run_id') \gset
UPDATE envrt.environment_leases SET lease_policy = 'retain_on_failure' WHERE id = :'id';
SELECT status, released_at, failure_reason FROM envrt_release_lease(:'id', 'failed');
SELECT id FROM envrt_acquire_lease(:'company_id', :'environment', :'run_id') \gset
UPDATE envrt.environment_leases SET lease_policy = 'retain_on_failure' WHERE id = :'id';
SELECT status, released_at IS NOT NULL AS released FROM envrt_release_lease(:'id', 'released');

-- a lease that does not say its driver ends by its environment's
INSERT INTO envrt.environment_leases (id, company_id, environment_id, heartbeat_run_id)
VALUES ('60000000-0000-4000-8000-000000000001', :'company_id', '20000000-0000-4000-8000-000000000003', :'run_id');
SELECT status, cleanup_status FROM envrt_release_lease('60000000-0000-4000-8000-000000000001');

-- columns of the user's own, and some that are gone
ALTER TABLE envrt.environment_leases ADD COLUMN gone text, ADD COLUMN note text DEFAULT 'mine';
ALTER TABLE envrt.environment_leases DROP COLUMN gone;
SELECT status, note FROM envrt_acquire_lease(:'company_id', :'environment', :'run_id');
SELECT status, note FROM envrt_release_leases(:'run_id');
ALTER TABLE envrt.environment_leases DROP COLUMN note;
SELECT status FROM envrt_acquire_lease(:'company_id', :'environment', :'run_id');
SELECT status FROM envrt_release_leases(:'run_id');

-- in the caller's transaction: savepoints and rollback take both back
BEGIN;
SELECT status FROM envrt_acquire_lease(:'company_id', :'environment', :'run_id');
SAVEPOINT s;
SELECT status FROM envrt_release_leases(:'run_id');
ROLLBACK TO s;
SELECT count(*) FROM envrt.environment_leases WHERE heartbeat_run_id = :'run_id' AND status = 'active';
SAVEPOINT s2;
SELECT status FROM envrt_acquire_lease(:'company_id', :'environment', :'run_id');
ROLLBACK TO s2;
SELECT count(*) FROM envrt_release_leases(:'run_id');
ROLLBACK;
SELECT count(*) FROM envrt.environment_leases WHERE heartbeat_run_id = :'run_id' AND status = 'active';

-- not in a read-only transaction
BEGIN READ ONLY;
SELECT attempt(format('SELECT envrt_acquire_lease(%L, %L, %L)', :'company_id', :'environment', :'run_id'));
SELECT attempt(format('SELECT * FROM envrt_release_leases(%L)', :'run_id'));
SELECT attempt(format('SELECT * FROM envrt_ensure_local_environment(%L)', :'company_id'));
SELECT envrt_normalize_config('local', '{"a": 1}');
COMMIT;

-- plans made on an empty table stay on the right index: what a statement reads does not grow with the table
INSERT INTO envrt.environment_leases (company_id, environment_id, heartbeat_run_id, status)
SELECT :'other_company', :'other_environment', :'other_run', 'released' FROM generate_series(1, 2000);
ANALYZE envrt.environment_leases;
TRUNCATE envrt.environment_leases;
\c -
SET search_path = public, regress;
SELECT status FROM envrt_acquire_lease(:'company_id', '20000000-0000-4000-8000-000000000004', :'run_id');
SELECT count(*) FROM envrt_release_leases(:'run_id');
SELECT id FROM envrt_acquire_lease(:'company_id', '20000000-0000-4000-8000-000000000004', :'run_id') \gset
SELECT count(*) FROM envrt_release_lease(:'id');
INSERT INTO envrt.environment_leases (company_id, environment_id, heartbeat_run_id, metadata)
SELECT :'other_company', :'other_environment', :'other_run', '{"driver": "local"}' FROM generate_series(1, 2000);
BEGIN;
SELECT status FROM envrt_acquire_lease(:'company_id', '20000000-0000-4000-8000-000000000004', :'run_id');
SELECT count(*) FROM envrt_release_leases(:'run_id');
SELECT id FROM envrt_acquire_lease(:'company_id', '20000000-0000-4000-8000-000000000004', :'run_id') \gset
SELECT count(*) FROM envrt_release_lease(:'id');
SELECT seq_scan, idx_tup_fetch < 50 AS few_rows_read FROM pg_stat_xact_user_tables
WHERE relid = 'envrt.environment_leases'::regclass;
ROLLBACK;
TRUNCATE envrt.environment_leases;
