-- envrt_normalize_config: the canonical shape, or an error that names the field.
\set helpers `echo "$PG_ABS_SRCDIR/lib/helpers.psql"`
\set ECHO none
\i :helpers

CREATE FUNCTION regress.canonical(driver text, config text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    outcome text := regress.attempt(format('SELECT envrt_normalize_config(%L, %L)', driver, config));
BEGIN
    IF outcome = 'no error' THEN
        RETURN envrt_normalize_config(driver, config::jsonb)::text;
    END IF;
    RETURN split_part(outcome, E'\n', 1);
END $$;

-- ssh
SELECT n, canonical('ssh', (base || given)::text)
FROM (SELECT '{"host": "h", "username": "u", "remoteWorkspacePath": "/w"}'::jsonb AS base) b,
     (VALUES (1, '{}'::jsonb),
             (2, '{"host": " h ", "username": " u ", "remoteWorkspacePath": " /w ", "port": "2222", "knownHosts": ""}'),
             (3, '{"knownHosts": " k\n", "strictHostKeyChecking": false}'),
             (4, '{"privateKey": "x"}'),
             (5, '{"privateKey": null}'),
             (6, '{"remoteWorkspacePath": "w"}'),
             (7, '{"remoteWorkspacePath": " "}'),
             (8, '{"host": " "}'),
             (9, '{"username": ""}'),
             (10, '{"port": 0}'),
             (11, '{"port": null}'),
             (12, '{"port": 70000}'),
             (13, '{"port": "abc"}'),
             (14, '{"port": 22.5}'),
             (15, '{"port": {}}'),
             (16, '{"foo": 1, "bar": 2}'),
             (17, '{"privateKeySecretRef": {"type": "secret_ref", "secretId": "00000000-0000-4000-8000-000000000001"}}'),
             (18, '{"privateKeySecretRef": {"type": "secret_ref", "secretId": "00000000-0000-4000-8000-000000000001", "version": 2}}'),
             (19, '{"privateKeySecretRef": {"type": "secret_ref", "secretId": "nope"}}'),
             (20, '{"privateKeySecretRef": {"type": "secret_ref", "secretId": "00000000-0000-4000-8000-000000000001", "version": 0}}'),
             (21, '{"privateKeySecretRef": "x"}'),
             (22, '{"host": 5}'),
             (23, '{"strictHostKeyChecking": "no"}'),
             (24, '{"host": "a b"}'),
             (25, '{"username": "a\nb"}'),
             (26, '{"knownHosts": 1}'),
             (27, '{"port": 1e400}')) AS t(n, given)
ORDER BY n;
SELECT attempt($$SELECT envrt_normalize_config('ssh', '{"port": 0, "x": 1}')$$);
SELECT canonical('ssh', x) FROM unnest(ARRAY['[]', '"x"', '1', 'null']) x;

-- the fake sandbox
SELECT canonical('sandbox', x)
FROM unnest(ARRAY['{"provider": "fake", "image": "  ubuntu:24.04  "}', '{}', '{"provider": "  "}',
                  '{"provider": "fake", "image": "i", "reuseLease": true}', '{"provider": "fake", "image": " "}',
                  '{"provider": "fake", "x": 1}', '{"provider": "fake", "reuseLease": "yes"}']) x;

-- a plugin's sandbox: what it does not know passes through, numbers as they were given
SELECT canonical('sandbox', x)
FROM unnest(ARRAY['{"provider": "fake-plugin", "timeoutMs": "120000", "image": " a ", "customFlag": [1.10, 12345678901234567890]}',
                  '{"provider": "e2b", "timeoutMs": 0}', '{"provider": "e2b", "timeoutMs": 86400001}',
                  '{"provider": "E2B"}', '{"provider": "e2b", "reuseLease": 1}', '{"provider": 7}']) x;

-- plugin, local, unknown
SELECT canonical('plugin', x)
FROM unnest(ARRAY['{"pluginKey": "k", "driverKey": "d", "driverConfig": {"template": "base"}}', '{"pluginKey": "k", "driverKey": "d"}',
                  '{"driverKey": "d"}', '{"pluginKey": "k", "driverKey": "D!"}', '{"pluginKey": "k", "driverKey": "d", "x": 1}']) x;
SELECT canonical('plugin', '{"pluginKey": "k", "driverKey": "d", "driverConfig": {"a": 12345678901234567890, "b": 1.10}}');
SELECT length(canonical('local', '{"a": 1e400}'));
SELECT canonical('local', x) FROM unnest(ARRAY['{"a": 1.50}', '[]', 'null', '7']) x;
SELECT canonical('docker', '{}');
SELECT attempt('SELECT envrt_normalize_config(NULL, NULL)');
SELECT attempt('SELECT envrt_normalize_config(''ssh'', NULL)');

-- hostile shapes
SELECT left(canonical('ssh', repeat('[', 5000) || repeat(']', 5000)), 60);
SELECT left(canonical('ssh', '{"host": "' || repeat('x', 1000000) || '"}'), 80);
SELECT length(canonical('local', '{"a": ' || repeat('[', 3000) || repeat(']', 3000) || '}'));
