-- The runtime contract, row by row, for the drivers without an outside; contract_ssh has the third.
\set helpers `echo "$PG_ABS_SRCDIR/lib/helpers.psql"`
\set ECHO none
\i :helpers

SELECT company_id, run_id FROM make_run('contract') \gset

-- local
INSERT INTO envrt.environments (id, company_id, name, driver, status, config)
VALUES ('10000000-0000-4000-8000-000000000001', :'company_id', 'local contract', 'local', 'active', '{}');
SELECT * FROM contract(:'company_id', '10000000-0000-4000-8000-000000000001', :'run_id');

-- fake sandbox
INSERT INTO envrt.environments (id, company_id, name, driver, status, config)
VALUES ('10000000-0000-4000-8000-000000000002', :'company_id', 'sandbox contract', 'sandbox', 'active',
        '{"provider": "fake", "image": "ubuntu:24.04", "reuseLease": false}');
SELECT * FROM contract(:'company_id', '10000000-0000-4000-8000-000000000002', :'run_id');
SELECT provider, lease_policy, cleanup_status, released_at = updated_at AS released_at_set,
       provider_lease_id ~ '^sandbox://fake/[0-9a-f-]+/[0-9a-f-]+$' AS id_matches,
       split_part(provider_lease_id, '/', 4) = :'run_id' AS names_the_run,
       metadata
FROM envrt.environment_leases WHERE environment_id = '10000000-0000-4000-8000-000000000002';

-- fake sandbox with reuseLease: one provider lease, a new lease each time
INSERT INTO envrt.environments (id, company_id, name, driver, status, config)
VALUES ('10000000-0000-4000-8000-000000000003', :'company_id', 'reuse', 'sandbox', 'active',
        '{"provider": "fake", "image": "ubuntu:24.04", "reuseLease": true}');
SELECT lease_policy, provider_lease_id, metadata
FROM envrt_acquire_lease(:'company_id', '10000000-0000-4000-8000-000000000003', :'run_id');
SELECT attempt(format('SELECT envrt_acquire_lease(%L, %L, %L)', :'company_id', '10000000-0000-4000-8000-000000000003', :'run_id'));
SELECT status, cleanup_status FROM envrt_release_leases(:'run_id');
SELECT lease_policy, provider_lease_id, metadata
FROM envrt_acquire_lease(:'company_id', '10000000-0000-4000-8000-000000000003', :'run_id');
SELECT status, cleanup_status FROM envrt_release_leases(:'run_id');
-- another image is another sandbox
UPDATE envrt.environments SET config = config || '{"image": "debian:12"}' WHERE id = '10000000-0000-4000-8000-000000000003';
SELECT provider_lease_id, metadata
FROM envrt_acquire_lease(:'company_id', '10000000-0000-4000-8000-000000000003', :'run_id');
SELECT count(*) FROM envrt_release_leases(:'run_id');
-- an earlier image is found again
UPDATE envrt.environments SET config = config || '{"image": "ubuntu:24.04"}' WHERE id = '10000000-0000-4000-8000-000000000003';
SELECT metadata -> 'resumedLease' AS resumed
FROM envrt_acquire_lease(:'company_id', '10000000-0000-4000-8000-000000000003', :'run_id');
-- the lease ends by what it says, not by what its environment has become
UPDATE envrt.environments SET driver = 'ssh', config = '{}' WHERE id = '10000000-0000-4000-8000-000000000003';
SELECT status, cleanup_status, metadata ->> 'driver' AS driver FROM envrt_release_leases(:'run_id');

-- the seed's own INSERT statements name every column
INSERT INTO envrt.companies (id, name, description, status, issue_prefix, created_at, updated_at)
VALUES (gen_random_uuid(), 'Acme', DEFAULT, 'active', DEFAULT, now(), now());
INSERT INTO envrt.companies (name) VALUES ('Acme');
