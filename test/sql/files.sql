-- Files to and from leases, where nothing can be moved: drivers that move none, bad arguments, no right.
-- With an SSH host and with sandboxes they are tested in test/t.
\set helpers `echo "$PG_ABS_SRCDIR/lib/helpers.psql"`
\set ECHO none
\i :helpers

SELECT company_id, run_id FROM make_run('files') \gset
SELECT id AS local FROM envrt_ensure_local_environment(:'company_id') \gset
INSERT INTO envrt.environments (company_id, name, driver, config)
VALUES (:'company_id', 'fake', 'sandbox', '{"provider": "fake"}') RETURNING id AS fake \gset
SELECT id AS local_lease FROM envrt_acquire_lease(:'company_id', :'local', :'run_id') \gset
SELECT id AS fake_lease FROM envrt_acquire_lease(:'company_id', :'fake', :'run_id') \gset
INSERT INTO envrt.environment_leases (id, company_id, environment_id, heartbeat_run_id, provider, provider_lease_id, status, metadata)
VALUES ('a6000000-0000-4000-8000-000000000001', :'company_id', :'fake', :'run_id', 'acme', 'acme-1', 'active', '{"driver": "sandbox", "provider": "acme"}'),
       ('a6000000-0000-4000-8000-000000000002', :'company_id', :'fake', :'run_id', 'plugin:acme:vm', 'vm-1', 'active', '{"driver": "plugin"}'),
       ('a6000000-0000-4000-8000-000000000003', :'company_id', :'fake', :'run_id', NULL, NULL, 'released', '{"driver": "local"}');

SELECT attempt(format($$SELECT envrt_push_files(%L, '/tmp')$$, :'local_lease'));
SELECT attempt(format($$SELECT envrt_pull_files(%L, '/tmp')$$, :'fake_lease'));
SELECT attempt($$SELECT envrt_push_files('a6000000-0000-4000-8000-000000000001', '/tmp')$$);
SELECT attempt($$SELECT envrt_push_files('a6000000-0000-4000-8000-000000000002', '/tmp')$$);
SELECT attempt($$SELECT envrt_push_files('a6000000-0000-4000-8000-000000000003', '/tmp')$$);
SELECT attempt($$SELECT envrt_push_files('00000000-0000-4000-8000-000000000000', '/tmp')$$);
SELECT attempt($$SELECT envrt_push_files(NULL, '/tmp')$$);
SELECT attempt(format('SELECT envrt_push_files(%L, NULL)', :'local_lease'));
SELECT attempt(format($$SELECT envrt_pull_files(%L, 'tmp')$$, :'local_lease'));
SELECT attempt(format($$SELECT envrt_pull_files(%L, '')$$, :'local_lease'));

-- each direction is a right of its own
CREATE ROLE regress_files;
GRANT USAGE ON SCHEMA envrt, regress TO regress_files;
GRANT SELECT ON envrt.companies, envrt.environments, envrt.heartbeat_runs, envrt.environment_leases TO regress_files;
GRANT EXECUTE ON FUNCTION envrt_push_files, envrt_pull_files TO regress_files;
SET ROLE regress_files;
SELECT attempt(format($$SELECT envrt_push_files(%L, '/tmp')$$, :'local_lease'));
SELECT attempt(format($$SELECT envrt_pull_files(%L, '/tmp')$$, :'local_lease'));
RESET ROLE;
GRANT pg_read_server_files TO regress_files;
SET ROLE regress_files;
SELECT attempt(format($$SELECT envrt_push_files(%L, '/tmp')$$, :'local_lease'));
SELECT attempt(format($$SELECT envrt_pull_files(%L, '/tmp')$$, :'local_lease'));
RESET ROLE;
DROP OWNED BY regress_files;
DROP ROLE regress_files;

SELECT count(*) AS transfers FROM envrt.stat_transfers;
