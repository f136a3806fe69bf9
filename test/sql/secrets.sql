-- Secrets: create, rotate, and what a stored row is worth elsewhere.
\set helpers `echo "$PG_ABS_SRCDIR/lib/helpers.psql"`
\set ECHO none
\i :helpers

SELECT company_id, run_id FROM make_run('secrets') \gset
SELECT company_id AS other_company FROM make_run('other secrets') \gset
\set missing '00000000-0000-4000-8000-00000000dead'

SELECT envrt_create_secret(:'company_id', 'token', 'correct horse battery staple', 'for tests') AS secret \gset
SELECT name, provider, latest_version, description FROM envrt.company_secrets WHERE id = :'secret';
SELECT envrt_rotate_secret(:'secret', 'second');
SELECT envrt_rotate_secret(:'secret', 'second');
SELECT latest_version FROM envrt.company_secrets WHERE id = :'secret';
SELECT version, jsonb_object_keys(material) AS key FROM envrt.company_secret_versions WHERE secret_id = :'secret' ORDER BY 1, 2;
-- the same value twice: other ciphertext, same keyed hash, which is no plain digest
SELECT count(DISTINCT material) AS materials, count(DISTINCT value_sha256) AS hashes,
       bool_or(value_sha256 = encode(sha256('second'), 'hex')) AS plain
FROM envrt.company_secret_versions WHERE secret_id = :'secret' AND version > 1;
SELECT count(*) FROM envrt.company_secret_versions v WHERE v::text ~ 'horse|second';
SELECT envrt_create_secret(:'other_company', 'token', 'second') AS other_secret \gset
SELECT count(DISTINCT value_sha256) FROM envrt.company_secret_versions WHERE secret_id IN (:'secret', :'other_secret') AND version IN (2) OR secret_id = :'other_secret';

SELECT octet_length(envrt_sealing_key());
SELECT envrt_sealing_key() = envrt_sealing_key() AS stable;

-- bad input
SELECT attempt(format('SELECT envrt_create_secret(%L, %L, %L)', c, n, v))
FROM (VALUES (1, :'company_id', 'token', 'x'), (2, :'missing', 'a', 'x'), (3, :'company_id', '', 'x'), (4, :'company_id', ' ', 'x'),
             (5, :'company_id', repeat('n', 256), 'x'), (6, :'company_id', 'a', '')) AS t(i, c, n, v) ORDER BY i;
SELECT attempt(format('SELECT envrt_create_secret(%L, %L, repeat(%L, 70000))', :'company_id', 'long', 'x'));
SELECT attempt('SELECT envrt_create_secret(NULL, ''a'', ''b'')');
SELECT attempt(format('SELECT envrt_create_secret(%L, NULL, ''b'')', :'company_id'));
SELECT attempt(format('SELECT envrt_create_secret(%L, ''a'', NULL)', :'company_id'));
SELECT attempt(format('SELECT envrt_rotate_secret(%L, ''b'')', :'missing'));
SELECT attempt('SELECT envrt_rotate_secret(NULL, ''b'')');
SELECT attempt(format('SELECT envrt_rotate_secret(%L, NULL)', :'secret'));
SELECT attempt(format('SELECT envrt_create_sealed_secret(%L, ''s'', %L)', :'company_id', b))
FROM unnest(ARRAY['\x'::bytea, '\x00'::bytea, decode(repeat('00', 100), 'hex')]) b;
SELECT attempt(format('SELECT envrt_create_sealed_secret(%L, ''s'', NULL)', :'company_id'));
SELECT attempt(format('SELECT envrt_rotate_sealed_secret(%L, %L)', :'secret', '\x00'));

-- a stored row is bound to its company, secret and version: what refers to a copy does not get it.
-- (No function returns a secret; an ssh probe resolves its key before anything else.)
CREATE FUNCTION regress.resolve(company uuid, secret uuid, version text DEFAULT '"latest"') RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    RETURN regexp_replace(regress.attempt(format('SELECT envrt_probe_config(%L, %L, %L)', company, 'ssh',
        jsonb_build_object('host', '127.0.0.1', 'port', 1, 'username', 'u', 'remoteWorkspacePath', '/w', 'privateKeySecretRef',
                           jsonb_build_object('type', 'secret_ref', 'secretId', secret, 'version', version::jsonb)))),
        '[0-9a-f]{8}-[0-9a-f-]{27}', '<id>', 'g');
END $$;
SELECT resolve(:'company_id', :'missing');
SELECT resolve(:'other_company', :'secret');
SELECT resolve(:'company_id', :'secret', '99');
SELECT resolve(:'company_id', :'secret', '4294967297');
BEGIN;
UPDATE envrt.company_secret_versions SET material = (SELECT material FROM envrt.company_secret_versions WHERE secret_id = :'secret' AND version = 1)
WHERE secret_id = :'secret' AND version = 3;
SELECT resolve(:'company_id', :'secret');
ROLLBACK;
BEGIN;
UPDATE envrt.company_secret_versions SET material = (SELECT material FROM envrt.company_secret_versions WHERE secret_id = :'secret' AND version = 1)
WHERE secret_id = :'other_secret';
SELECT resolve(:'other_company', :'other_secret');
ROLLBACK;
BEGIN;
UPDATE envrt.company_secrets SET company_id = :'other_company', name = 'moved' WHERE id = :'secret';
SELECT resolve(:'other_company', :'secret');
ROLLBACK;
BEGIN;
UPDATE envrt.company_secret_versions SET material = m FROM unnest(ARRAY['{}'::jsonb]) m WHERE secret_id = :'secret';
SELECT resolve(:'company_id', :'secret');
UPDATE envrt.company_secret_versions SET material = '{"scheme": "envrt_xchacha20poly1305_v1", "nonce": "", "ciphertext": "!"}' WHERE secret_id = :'secret';
SELECT resolve(:'company_id', :'secret');
UPDATE envrt.company_secret_versions SET revoked_at = now() WHERE secret_id = :'secret';
SELECT resolve(:'company_id', :'secret');
ROLLBACK;
