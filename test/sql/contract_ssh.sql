-- The runtime contract for ssh, against a real sshd; see contract for the other drivers.
-- The test run starts the sshd and the health server and names them in the environment.
\set helpers `echo "$PG_ABS_SRCDIR/lib/helpers.psql"`
\set ECHO none
\i :helpers
\set QUIET on
\set port `echo "$ENVRT_TEST_SSH_PORT"`
\set user `echo "$ENVRT_TEST_SSH_USER"`
\set directory `echo "$ENVRT_TEST_SSH_DIR"`
\set api `echo "$ENVRT_TEST_API"`
\set key `cat "$ENVRT_TEST_SSH_DIR/user_ed25519"`
\set known_hosts `cat "$ENVRT_TEST_SSH_DIR/known_hosts"`
\set QUIET off

SELECT company_id, run_id FROM make_run('contract ssh') \gset
SELECT :'directory' || '/work space''s "dir"' AS workspace \gset
SELECT id AS environment
FROM envrt_create_environment(:'company_id', 'ssh contract', 'ssh',
    jsonb_build_object('host', '127.0.0.1', 'port', :port, 'username', :'user', 'remoteWorkspacePath', :'workspace',
                       'privateKey', :'key', 'knownHosts', :'known_hosts')) \gset
SELECT * FROM contract(:'company_id', :'environment', :'run_id');
SELECT provider, lease_policy, cleanup_status, failure_reason,
       provider_lease_id = 'ssh://' || :'user' || '@127.0.0.1:' || :port || :'workspace' AS provider_lease_id,
       metadata ->> 'host' AS host, (metadata ->> 'port')::int = :port AS port, metadata ->> 'username' = :'user' AS username,
       metadata ->> 'remoteWorkspacePath' = :'workspace' AS remote_workspace_path,
       metadata ->> 'remoteCwd' = :'workspace' AS remote_cwd, metadata ->> 'paperclipApiUrl' = :'api' AS api_url,
       (SELECT array_agg(k ORDER BY k) FROM jsonb_object_keys(metadata) k) AS keys
FROM envrt.environment_leases WHERE environment_id = :'environment' \gx
SELECT ok, driver, summary = 'Connected to ' || :'user' || '@127.0.0.1 and verified the remote workspace path.' AS summary,
       details = jsonb_build_object('host', '127.0.0.1', 'port', :port, 'username', :'user',
                                    'remoteWorkspacePath', :'workspace', 'remoteCwd', :'workspace') AS details
FROM envrt_probe(:'environment');
