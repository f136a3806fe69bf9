-- Where a workspace is in a lease: the record of the built-in drivers.  With plugins: test/t.
\set helpers `echo "$PG_ABS_SRCDIR/lib/helpers.psql"`
\set ECHO none
\i :helpers

SELECT company_id, run_id FROM make_run('realize') \gset
SELECT id AS local FROM envrt_ensure_local_environment(:'company_id') \gset
INSERT INTO envrt.environments (company_id, name, driver, config)
VALUES (:'company_id', 'fake', 'sandbox', '{"provider": "fake"}') RETURNING id AS fake \gset
INSERT INTO envrt.environments (id, company_id, name, driver, config)
VALUES ('57000000-0000-4000-8000-000000000001', :'company_id', 'ssh', 'ssh', '{}');
SELECT id AS local_lease FROM envrt_acquire_lease(:'company_id', :'local', :'run_id') \gset
SELECT id AS fake_lease FROM envrt_acquire_lease(:'company_id', :'fake', :'run_id') \gset
-- for the record it only counts what a lease says
INSERT INTO envrt.environment_leases (id, company_id, environment_id, heartbeat_run_id, provider, provider_lease_id, status, metadata)
VALUES ('57000000-0000-4000-8000-000000000002', :'company_id', '57000000-0000-4000-8000-000000000001', :'run_id', 'ssh', 'ssh://ci@build.example.com:2222/srv/work', 'active',
        '{"driver": "ssh", "host": "build.example.com", "port": 2222, "username": "ci", "remoteCwd": "/srv/work"}'),
       ('57000000-0000-4000-8000-000000000003', :'company_id', :'fake', :'run_id', 'bubblewrap', 'sandbox://bubblewrap/x', 'active',
        '{"driver": "sandbox", "provider": "bubblewrap", "remoteCwd": "/workspace", "sandboxId": "sb-1"}'),
       ('57000000-0000-4000-8000-000000000004', :'company_id', :'fake', :'run_id', NULL, NULL, 'released', '{"driver": "local"}');
\set ssh_lease 57000000-0000-4000-8000-000000000002
\set sandbox_lease 57000000-0000-4000-8000-000000000003

-- ids differ from run to run
CREATE FUNCTION pg_temp.show(realized jsonb, environment uuid, lease uuid) RETURNS text LANGUAGE sql AS
$$ SELECT replace(replace(jsonb_pretty(realized), environment::text, '<environment>'), lease::text, '<lease>') $$;

SELECT pg_temp.show(envrt_realize_workspace(:'local_lease', '{"localPath": " /srv/checkout ", "mode": "shared_workspace"}'), :'local', :'local_lease');
SELECT pg_temp.show(envrt_realize_workspace(:'ssh_lease', '{"localPath": "/srv/checkout"}'), '57000000-0000-4000-8000-000000000001', :'ssh_lease');
SELECT pg_temp.show(envrt_realize_workspace(:'sandbox_lease', '{"localPath": "/srv/checkout"}'), :'fake', :'sandbox_lease');
-- cwd: what is known of either side
SELECT envrt_realize_workspace(:'local_lease') ->> 'cwd' AS nothing,
       envrt_realize_workspace(:'local_lease', '{"remotePath": "/r", "cwd": "/c"}') ->> 'cwd' AS remote,
       envrt_realize_workspace(:'local_lease', '{"remotePath": "/r", "cwd": "/c"}') #>> '{metadata,workspaceRealization,local,path}' AS local_path,
       envrt_realize_workspace(:'fake_lease', '{"localPath": "/l"}') ->> 'cwd' AS fake,
       envrt_realize_workspace(:'fake_lease', '{"localPath": "/l"}') #>> '{metadata,workspaceRealization,summary}' AS fake_summary;
-- a request of the caller's
\set request '{"version": 1, "adapterType": "codex_local", "companyId": "c", "environmentId": "e", "executionWorkspaceId": "w", "heartbeatRunId": "r", "requestedMode": "isolated_workspace", "source": {"kind": "agent_home", "localPath": " /home/agent ", "projectId": "p", "repoUrl": "https://git.example.com/a.git", "repoRef": "main", "strategy": "git_worktree", "branchName": "b", "worktreePath": "/wt"}, "runtimeOverlay": {"provisionCommand": "make setup", "workspaceRuntime": {"services": []}}}'
SELECT pg_temp.show(envrt_realize_workspace(:'ssh_lease', jsonb_build_object('localPath', '/ignored', 'metadata', jsonb_build_object('workspaceRealizationRequest', :'request'::jsonb))), '57000000-0000-4000-8000-000000000001', :'ssh_lease');
SELECT r #>> '{local,path}' AS path, r #>> '{local,source}' AS source, r #>> '{rebuild,mode}' AS mode
FROM (VALUES (:'request'::jsonb, 'second choice'),
             (:'request'::jsonb || '{"version": 2}', 'another version'),
             (:'request'::jsonb || '{"adapterType": "  "}', 'a blank'),
             (jsonb_set(:'request'::jsonb, '{source,kind}', '"other"'), 'an unknown kind')) AS v (request, what),
     LATERAL (SELECT envrt_realize_workspace(:'ssh_lease', jsonb_build_object('localPath', '/default', 'mode', 'm', 'metadata', jsonb_build_object('request', v.request)))
                     #> '{metadata,workspaceRealization}') AS x (r);

-- bad arguments
SELECT attempt($$SELECT envrt_realize_workspace(NULL)$$);
SELECT attempt(format('SELECT envrt_realize_workspace(%L, NULL)', :'local_lease'));
SELECT attempt(format($$SELECT envrt_realize_workspace(%L, '[]')$$, :'local_lease'));
SELECT attempt(format($$SELECT envrt_realize_workspace(%L, '{"localPath": 1}')$$, :'local_lease'));
SELECT attempt(format($$SELECT envrt_realize_workspace(%L, '{"metadata": "x"}')$$, :'local_lease'));
SELECT attempt($$SELECT envrt_realize_workspace('00000000-0000-4000-8000-000000000000')$$);
SELECT attempt($$SELECT envrt_realize_workspace('57000000-0000-4000-8000-000000000004')$$);
