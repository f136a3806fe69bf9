-- Environments: create, ensure local, probe.
\set helpers `echo "$PG_ABS_SRCDIR/lib/helpers.psql"`
\set ECHO none
\i :helpers

SELECT company_id, run_id FROM make_run('environments') \gset
SELECT company_id AS other_company FROM make_run('other environments') \gset
\set missing '00000000-0000-4000-8000-00000000dead'

-- the one local environment
SELECT name, description, driver, status, config, metadata, created_at = updated_at AS one_now
FROM envrt_ensure_local_environment(:'company_id');
SELECT id AS local FROM envrt_ensure_local_environment(:'company_id') \gset
UPDATE envrt.environments SET status = 'archived', name = 'Mine', updated_at = '2001-01-01' WHERE id = :'local';
SELECT id = :'local' AS same, name, status, updated_at = '2001-01-01' AS untouched FROM envrt_ensure_local_environment(:'company_id');
SELECT attempt(format('SELECT envrt_ensure_local_environment(%L)', :'missing'));
SELECT attempt('SELECT envrt_ensure_local_environment(NULL)');
SELECT regexp_replace(attempt(format('SELECT envrt_create_environment(%L, %L, %L)', :'company_id', 'Second', 'local')), '"[^"]*"', '<id>');

-- create
SELECT name, description, driver, status, config, metadata
FROM envrt_create_environment(:'company_id', 'Plugin sandbox', 'sandbox', '{"provider": "journal", "directory": "/", "timeoutMs": "450000", "image": "x"}',
                              'a description', '{"a": 1}');
SELECT driver, config FROM envrt_create_environment(:'other_company', 'L', 'local', '{"free": "form"}');
SELECT attempt(format('SELECT envrt_create_environment(%L, %L, %L, %L)', :'company_id', n, d, c))
FROM (VALUES (1, 'f', 'sandbox', '{"provider": "fake"}'),
             (2, 'f', 'sandbox', '{}'),
             (3, 'p', 'plugin', '{"pluginKey": "k", "driverKey": "d"}'),
             (4, '', 'local', '{}'),
             (5, E' \n', 'local', '{}'),
             (6, 'x', 'docker', '{}'),
             (7, 'x', 'ssh', '{"host": "h"}'),
             (8, 'x', 'ssh', '[]'),
             (9, 'x', 'sandbox', '{"provider": "e2b"}'),
             (10, 'x', 'sandbox', '{"provider": "journal"}'),
             (11, repeat('x', 2001), 'sandbox', '{"provider": "journal", "directory": "/"}'),
             (12, 'x', 'ssh', jsonb_build_object('host', 'h', 'username', 'u', 'remoteWorkspacePath', '/' || repeat('x', 1400))::text)) AS t(i, n, d, c)
ORDER BY i;
SELECT attempt(format('SELECT envrt_create_environment(%L, %L, %L)', :'missing', 'x', 'local'));
SELECT attempt('SELECT envrt_create_environment(NULL, ''x'', ''local'')');
SELECT attempt(format('SELECT envrt_create_environment(%L, NULL, ''local'')', :'company_id'));
SELECT attempt(format('SELECT envrt_create_environment(%L, ''x'', NULL)', :'company_id'));
SELECT attempt(format('SELECT envrt_create_environment(%L, ''x'', ''local'', NULL)', :'company_id'));
SELECT attempt(format('SELECT envrt_create_environment(%L, ''x'', ''sandbox'', ''{"provider": "e2b"}'', NULL, ''[]'')', :'company_id'));

-- a raw private key becomes a secret in the same transaction
\set key `printf '%s\n' '-----BEGIN EC PRIVATE KEY-----' 'MHcCAQEEICdmGqnao0k+yIM5BxNyByOcPr/qUZS64/V1JCQe0RLjoAoGCCqGSM49' 'AwEHoUQDQgAEariT5TmXn97Kl0gkobSRG23jJ8bEGhcZyz40zKZ8ueE40ftR8p7x' 'Zcfi78d9QPw1+cs9HotRpZXjYJwDEe/qlA==' '-----END EC PRIVATE KEY-----'`
SELECT jsonb_build_object('host', 'h', 'username', 'u', 'remoteWorkspacePath', '/w', 'privateKey', :'key') AS config \gset
SELECT id AS ssh, config - 'privateKeySecretRef' AS config, config -> 'privateKeySecretRef' ->> 'type' AS type,
       config -> 'privateKeySecretRef' ->> 'version' AS version
FROM envrt_create_environment(:'company_id', 'My  SSH-Host!', 'ssh', :'config') \gset s_
\set ssh :s_ssh
SELECT :'s_config', :'s_type', :'s_version';
SELECT regexp_replace(s.name, '[0-9a-f]{8}$', '<8 hex>') AS name, s.provider, s.latest_version, s.description,
       s.id::text = e.config -> 'privateKeySecretRef' ->> 'secretId' AS referenced,
       v.material ? 'ciphertext' AS encrypted
FROM envrt.company_secrets s JOIN envrt.company_secret_versions v ON v.secret_id = s.id
     JOIN envrt.environments e ON e.company_id = s.company_id AND e.driver = 'ssh'
WHERE s.company_id = :'company_id';
SELECT count(*) FROM envrt.environments e WHERE e::text LIKE '%MHcCAQEE%';
SELECT count(*) FROM envrt.company_secret_versions v WHERE v::text LIKE '%MHcCAQEE%';
BEGIN;
SELECT count(*) FROM envrt_create_environment(:'company_id', 'gone', 'ssh', :'config');
ROLLBACK;
SELECT count(*) FROM envrt.company_secrets WHERE name LIKE '%gone%';
-- a bad config leaves no secret behind, and a key that can't be used is refused without being shown
SELECT attempt(format('SELECT envrt_create_environment(%L, %L, %L, %L)', :'company_id', 'x', 'ssh', :'config'::jsonb - 'host'));
SELECT attempt(format('SELECT envrt_create_environment(%L, %L, %L, %L)', :'company_id', 'x', 'ssh', :'config'::jsonb || jsonb_build_object('privateKey', k)))
FROM (VALUES (1, 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHRlc3Q test'),
             (2, E'-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----'),
             (3, 'hunter2')) AS t(i, k)
ORDER BY i;
SELECT count(*) FROM envrt.company_secrets WHERE company_id = :'company_id';
-- a blank key is none
SELECT config -> 'privateKey' AS key, config -> 'privateKeySecretRef' AS reference
FROM envrt_create_environment(:'company_id', 'no key', 'ssh', :'config'::jsonb || '{"privateKey": "  "}');

-- a reference must be to a secret of the company
SELECT attempt(format('SELECT envrt_create_environment(%L, %L, %L, %L)', :'company_id', 'x', 'ssh', jsonb_build_object('host', 'h', 'username', 'u', 'remoteWorkspacePath', '/w',
    'privateKeySecretRef', jsonb_build_object('type', 'secret_ref', 'secretId', :'missing'))));
SELECT id AS secret FROM envrt.company_secrets WHERE company_id = :'company_id' \gset
SELECT attempt(format('SELECT envrt_create_environment(%L, %L, %L, %L)', :'other_company', 'x', 'ssh', jsonb_build_object('host', 'h', 'username', 'u', 'remoteWorkspacePath', '/w',
    'privateKeySecretRef', jsonb_build_object('type', 'secret_ref', 'secretId', :'secret'))));

-- probes that need no outside
SELECT ok, driver, summary, details ? 'hostname' AS hostname, details ? 'cwd' AS cwd FROM envrt_probe(:'local');
SELECT * FROM envrt_probe_config(:'company_id', 'sandbox', '{"provider": "fake", "image": " ubuntu:24.04 ", "reuseLease": true}');
SELECT * FROM envrt_probe_config(:'company_id', 'sandbox', '{"provider": "e2b"}');
SELECT * FROM envrt_probe_config(:'company_id', 'plugin', '{"pluginKey": "k", "driverKey": "d"}');
UPDATE envrt.environments SET config = '{"host": "h"}' WHERE id = :'ssh';
SELECT * FROM envrt_probe(:'ssh');
UPDATE envrt.environments SET config = '{"host": "h", "username": "u", "remoteWorkspacePath": "/w"}' WHERE id = :'ssh';
SELECT * FROM envrt_probe(:'ssh');
SELECT attempt(format('SELECT envrt_probe(%L)', :'missing'));
SELECT attempt('SELECT envrt_probe(NULL)');
SELECT attempt(format('SELECT envrt_probe_config(%L, ''local'', ''{}'')', :'missing'));
SELECT attempt(format('SELECT envrt_probe_config(%L, ''docker'', ''{}'')', :'company_id'));
SELECT count(*) FROM envrt.environments WHERE name = 'Unsaved environment';
