-- Commands in a lease, where there is no command to run: drivers that run none, and bad arguments.
-- With an SSH host and with sandboxes they are tested in test/t.
\set helpers `echo "$PG_ABS_SRCDIR/lib/helpers.psql"`
\set ECHO none
\i :helpers

SELECT company_id, run_id FROM make_run('execute') \gset
SELECT id AS local FROM envrt_ensure_local_environment(:'company_id') \gset
INSERT INTO envrt.environments (company_id, name, driver, config)
VALUES (:'company_id', 'fake', 'sandbox', '{"provider": "fake"}') RETURNING id AS fake \gset
SELECT id AS local_lease FROM envrt_acquire_lease(:'company_id', :'local', :'run_id') \gset
SELECT id AS fake_lease FROM envrt_acquire_lease(:'company_id', :'fake', :'run_id') \gset
\set nobody 00000000-0000-4000-8000-000000000000

SELECT attempt(format($$SELECT envrt_execute(%L, 'true')$$, :'local_lease'));
SELECT attempt(format($$SELECT envrt_execute(%L, 'true')$$, :'fake_lease'));
SELECT attempt(format($$SELECT envrt_execute_raw(%L, 'true')$$, :'local_lease'));
SELECT attempt(format($$SELECT envrt_execute(%L, 'true')$$, :'nobody'));
SELECT attempt($$SELECT envrt_execute(NULL, 'true')$$);
SELECT attempt(format('SELECT envrt_execute(%L, NULL)', :'local_lease'));
SELECT attempt(format($$SELECT envrt_execute(%L, '')$$, :'local_lease'));
SELECT attempt(format($$SELECT envrt_start_execution(%L, '')$$, :'local_lease'));
SELECT attempt(format($$SELECT envrt_execute(%L, 'true', timeout => '0')$$, :'local_lease'));
SELECT attempt(format($$SELECT envrt_execute(%L, 'true', timeout => '2 days')$$, :'local_lease'));

-- sandboxes that envrt makes: their config
SELECT envrt_normalize_config('sandbox', '{"provider": "bubblewrap"}');
SELECT envrt_normalize_config('sandbox', '{"provider": " bubblewrap ", "image": "debian-12", "memoryMb": "512", "cpuSeconds": 60, "maxProcesses": 64,
    "maxFileMb": 100, "workspaceMb": 1000, "timeoutMs": 60000, "reuseLease": true, "env": {"LANG": "C.UTF-8"}}');
SELECT attempt($$SELECT envrt_normalize_config('sandbox', '{"provider": "bubblewrap", "network": true}')$$);
SELECT attempt($$SELECT envrt_normalize_config('sandbox', '{"provider": "bubblewrap", "image": "../../etc"}')$$);
SELECT attempt($$SELECT envrt_normalize_config('sandbox', '{"provider": "bubblewrap", "image": ".."}')$$);
SELECT attempt($$SELECT envrt_normalize_config('sandbox', '{"provider": "bubblewrap", "memoryMb": 1, "cpuSeconds": "x", "maxProcesses": 0.5}')$$);
SELECT attempt($$SELECT envrt_normalize_config('sandbox', '{"provider": "bubblewrap", "env": {"BAD KEY": "x"}}')$$);
SELECT attempt($$SELECT envrt_normalize_config('sandbox', '{"provider": "bubblewrap", "env": {"A": 1}}')$$);
SELECT attempt($$SELECT envrt_normalize_config('sandbox', '{"provider": "bubblewrap", "privileged": true}')$$);
