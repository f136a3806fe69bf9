-- The install script's source; copied to sql/envrt--<version>.sql by make.
-- Functions go to the schema that CREATE EXTENSION was told, tables and views to schema envrt.
-- Every name is qualified, since the target schema may be somebody else's: test/lib/check_sql, which
-- the test run applies, has the rules and the reasons.

\echo Use "CREATE EXTENSION envrt" to load this file. \quit

CREATE SCHEMA envrt;
COMMENT ON SCHEMA envrt IS 'envrt: tables and views; the functions envrt_* are in the extension''s schema';

-- ---------------------------------------------------------------------------------------------
-- The shared tables: names, columns, types, defaults and indexes as agent control planes that
-- keep them in an application schema have them, so that their INSERTs work here.
-- Ids that are compared for equality only are in collation "C", whose order no library of the system changes.
-- Every foreign key has an index that begins with its columns: without, a DELETE of what it refers to reads all.
-- What is text in a btree has a limit of its own, since a btree has one of 2,704 bytes for all its columns together.
-- ---------------------------------------------------------------------------------------------

CREATE TABLE envrt.companies (
    id uuid PRIMARY KEY DEFAULT pg_catalog.gen_random_uuid(),
    name text NOT NULL,
    description text,
    status text NOT NULL DEFAULT 'active'
        CONSTRAINT companies_status_check CHECK (status OPERATOR(pg_catalog.=) ANY (ARRAY['active', 'paused', 'archived'])),
    budget_monthly_cents integer NOT NULL DEFAULT 0,
    spent_monthly_cents integer NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    updated_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    -- The control plane's default is the constant PAP under a unique index: a second company
    -- could not be made by name alone.  Here a default never collides.
    issue_prefix text NOT NULL DEFAULT ('PAP' OPERATOR(pg_catalog.||) pg_catalog.upper(pg_catalog.replace(pg_catalog.gen_random_uuid()::text, '-', '')))
        CONSTRAINT companies_issue_prefix_max_2000_bytes CHECK (pg_catalog.octet_length(issue_prefix) OPERATOR(pg_catalog.<=) 2000),
    issue_counter integer NOT NULL DEFAULT 0,
    require_board_approval_for_new_agents boolean NOT NULL DEFAULT true,
    brand_color text,
    pause_reason text,
    paused_at timestamptz,
    feedback_data_sharing_enabled boolean NOT NULL DEFAULT false,
    feedback_data_sharing_consent_at timestamptz,
    feedback_data_sharing_consent_by_user_id text,
    feedback_data_sharing_terms_version text
);
CREATE UNIQUE INDEX companies_issue_prefix_idx ON envrt.companies (issue_prefix);
COMMENT ON INDEX envrt.companies_issue_prefix_idx IS 'An issue prefix belongs to one company';
COMMENT ON TABLE envrt.companies IS 'Tenants: nothing that belongs to one is ever used for another';

CREATE TABLE envrt.execution_workspaces (
    id uuid PRIMARY KEY DEFAULT pg_catalog.gen_random_uuid(),
    company_id uuid NOT NULL REFERENCES envrt.companies,
    project_id uuid NOT NULL,
    project_workspace_id uuid,
    source_issue_id uuid,
    mode text NOT NULL,
    strategy_type text NOT NULL,
    name text NOT NULL,
    status text NOT NULL DEFAULT 'active'
        CONSTRAINT execution_workspaces_status_check
        CHECK (status OPERATOR(pg_catalog.=) ANY (ARRAY['active', 'idle', 'in_review', 'archived', 'cleanup_failed'])),
    cwd text,
    repo_url text,
    base_ref text,
    branch_name text
        CONSTRAINT execution_workspaces_branch_name_max_2000_bytes CHECK (pg_catalog.octet_length(branch_name) OPERATOR(pg_catalog.<=) 2000),
    provider_type text NOT NULL DEFAULT 'local_fs',
    provider_ref text,
    derived_from_execution_workspace_id uuid REFERENCES envrt.execution_workspaces ON DELETE SET NULL,
    last_used_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    opened_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    closed_at timestamptz,
    cleanup_eligible_at timestamptz,
    cleanup_reason text,
    metadata jsonb,
    created_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    updated_at timestamptz NOT NULL DEFAULT pg_catalog.now()
);
CREATE INDEX execution_workspaces_company_source_issue_idx ON envrt.execution_workspaces (company_id, source_issue_id);
CREATE INDEX execution_workspaces_company_last_used_idx ON envrt.execution_workspaces (company_id, last_used_at);
CREATE INDEX execution_workspaces_company_branch_idx ON envrt.execution_workspaces (company_id, branch_name);
CREATE INDEX execution_workspaces_company_project_status_idx ON envrt.execution_workspaces (company_id, project_id, status);
CREATE INDEX execution_workspaces_company_project_workspace_status_idx ON envrt.execution_workspaces (company_id, project_workspace_id, status);
COMMENT ON INDEX envrt.execution_workspaces_company_source_issue_idx IS 'The workspaces made for an issue';
COMMENT ON INDEX envrt.execution_workspaces_company_last_used_idx IS 'A company''s workspaces by last use';
COMMENT ON INDEX envrt.execution_workspaces_company_branch_idx IS 'The workspaces of a branch';
COMMENT ON INDEX envrt.execution_workspaces_company_project_status_idx IS 'A project''s workspaces by status';
COMMENT ON INDEX envrt.execution_workspaces_company_project_workspace_status_idx IS 'The workspaces of a project workspace by status';
CREATE INDEX execution_workspaces_derived_from_idx ON envrt.execution_workspaces (derived_from_execution_workspace_id) WHERE derived_from_execution_workspace_id IS NOT NULL;
COMMENT ON INDEX envrt.execution_workspaces_derived_from_idx IS 'The workspaces that are derived from one';
COMMENT ON TABLE envrt.execution_workspaces IS 'Checkouts that runs work in; a lease can name one';

CREATE TABLE envrt.environments (
    id uuid PRIMARY KEY DEFAULT pg_catalog.gen_random_uuid(),
    company_id uuid NOT NULL REFERENCES envrt.companies ON DELETE CASCADE,
    name text NOT NULL
        CONSTRAINT environments_name_max_2000_bytes CHECK (pg_catalog.octet_length(name) OPERATOR(pg_catalog.<=) 2000),
    description text,
    driver text NOT NULL DEFAULT 'local'
        CONSTRAINT environments_driver_check CHECK (driver OPERATOR(pg_catalog.=) ANY (ARRAY['local', 'ssh', 'sandbox', 'plugin'])),
    status text NOT NULL DEFAULT 'active'
        CONSTRAINT environments_status_check CHECK (status OPERATOR(pg_catalog.=) ANY (ARRAY['active', 'archived'])),
    config jsonb NOT NULL DEFAULT '{}',
    metadata jsonb,
    created_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    updated_at timestamptz NOT NULL DEFAULT pg_catalog.now()
);
CREATE INDEX environments_company_status_idx ON envrt.environments (company_id, status);
CREATE INDEX environments_company_name_idx ON envrt.environments (company_id, name);
CREATE UNIQUE INDEX environments_company_driver_idx ON envrt.environments (company_id, driver) WHERE driver OPERATOR(pg_catalog.=) 'local';
COMMENT ON INDEX envrt.environments_company_status_idx IS 'A company''s environments by status';
COMMENT ON INDEX envrt.environments_company_name_idx IS 'A company''s environments by name';
COMMENT ON INDEX envrt.environments_company_driver_idx IS 'One local environment per company';
COMMENT ON TABLE envrt.environments IS 'Where work can run: the local machine, an SSH host, a sandbox, or what a plugin provides';
COMMENT ON COLUMN envrt.environments.config IS 'The driver''s config in its canonical shape (envrt_normalize_config); secrets are references to company_secrets';

CREATE TABLE envrt.agents (
    id uuid PRIMARY KEY DEFAULT pg_catalog.gen_random_uuid(),
    company_id uuid NOT NULL REFERENCES envrt.companies,
    name text NOT NULL,
    role text NOT NULL DEFAULT 'general',
    title text,
    status text NOT NULL DEFAULT 'idle'
        CONSTRAINT agents_status_check
        CHECK (status OPERATOR(pg_catalog.=) ANY (ARRAY['active', 'paused', 'idle', 'running', 'error', 'pending_approval', 'terminated'])),
    reports_to uuid REFERENCES envrt.agents,
    capabilities text,
    adapter_type text NOT NULL DEFAULT 'process',
    adapter_config jsonb NOT NULL DEFAULT '{}',
    budget_monthly_cents integer NOT NULL DEFAULT 0,
    spent_monthly_cents integer NOT NULL DEFAULT 0,
    last_heartbeat_at timestamptz,
    metadata jsonb,
    created_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    updated_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    runtime_config jsonb NOT NULL DEFAULT '{}',
    permissions jsonb NOT NULL DEFAULT '{}',
    icon text,
    pause_reason text,
    paused_at timestamptz,
    default_environment_id uuid REFERENCES envrt.environments ON DELETE SET NULL
);
CREATE INDEX agents_company_reports_to_idx ON envrt.agents (company_id, reports_to);
CREATE INDEX agents_company_status_idx ON envrt.agents (company_id, status);
CREATE INDEX agents_company_default_environment_idx ON envrt.agents (company_id, default_environment_id);
COMMENT ON INDEX envrt.agents_company_reports_to_idx IS 'Who reports to an agent';
COMMENT ON INDEX envrt.agents_company_status_idx IS 'A company''s agents by status';
COMMENT ON INDEX envrt.agents_company_default_environment_idx IS 'The agents with a default environment';
CREATE INDEX agents_reports_to_idx ON envrt.agents (reports_to) WHERE reports_to IS NOT NULL;
COMMENT ON INDEX envrt.agents_reports_to_idx IS 'Who reports to an agent, whatever the company';
CREATE INDEX agents_default_environment_idx ON envrt.agents (default_environment_id) WHERE default_environment_id IS NOT NULL;
COMMENT ON INDEX envrt.agents_default_environment_idx IS 'The agents with a default environment, whatever the company';
COMMENT ON TABLE envrt.agents IS 'Who runs; an agent can name a default environment';

CREATE TABLE envrt.heartbeat_runs (
    id uuid PRIMARY KEY DEFAULT pg_catalog.gen_random_uuid(),
    company_id uuid NOT NULL REFERENCES envrt.companies,
    agent_id uuid NOT NULL REFERENCES envrt.agents,
    invocation_source text NOT NULL DEFAULT 'on_demand',
    status text NOT NULL DEFAULT 'queued'
        CONSTRAINT heartbeat_runs_status_check
        CHECK (status OPERATOR(pg_catalog.=) ANY (ARRAY['queued', 'scheduled_retry', 'running', 'succeeded', 'failed', 'cancelled', 'timed_out'])),
    started_at timestamptz,
    finished_at timestamptz,
    error text,
    external_run_id text,
    context_snapshot jsonb,
    created_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    updated_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    trigger_detail text,
    wakeup_request_id uuid,
    exit_code integer,
    signal text,
    usage_json jsonb,
    result_json jsonb,
    session_id_before text,
    session_id_after text,
    log_store text,
    log_ref text,
    log_bytes bigint,
    log_sha256 text,
    log_compressed boolean NOT NULL DEFAULT false,
    stdout_excerpt text,
    stderr_excerpt text,
    error_code text,
    process_pid integer,
    process_started_at timestamptz,
    retry_of_run_id uuid REFERENCES envrt.heartbeat_runs ON DELETE SET NULL,
    process_loss_retry_count integer NOT NULL DEFAULT 0,
    issue_comment_status text NOT NULL DEFAULT 'not_applicable',
    issue_comment_satisfied_by_comment_id uuid,
    issue_comment_retry_queued_at timestamptz,
    process_group_id integer,
    liveness_state text
        CONSTRAINT heartbeat_runs_liveness_state_max_2000_bytes CHECK (pg_catalog.octet_length(liveness_state) OPERATOR(pg_catalog.<=) 2000),
    liveness_reason text,
    continuation_attempt integer NOT NULL DEFAULT 0,
    last_useful_action_at timestamptz,
    next_action text,
    scheduled_retry_at timestamptz,
    scheduled_retry_attempt integer NOT NULL DEFAULT 0,
    scheduled_retry_reason text
);
CREATE INDEX heartbeat_runs_company_liveness_idx ON envrt.heartbeat_runs (company_id, liveness_state, created_at);
CREATE INDEX heartbeat_runs_company_agent_started_idx ON envrt.heartbeat_runs (company_id, agent_id, started_at);
COMMENT ON INDEX envrt.heartbeat_runs_company_liveness_idx IS 'A company''s runs by liveness, in the order of their making';
COMMENT ON INDEX envrt.heartbeat_runs_company_agent_started_idx IS 'An agent''s runs by their start';
CREATE INDEX heartbeat_runs_agent_idx ON envrt.heartbeat_runs (agent_id);
COMMENT ON INDEX envrt.heartbeat_runs_agent_idx IS 'The runs of an agent';
CREATE INDEX heartbeat_runs_retry_of_run_idx ON envrt.heartbeat_runs (retry_of_run_id) WHERE retry_of_run_id IS NOT NULL;
COMMENT ON INDEX envrt.heartbeat_runs_retry_of_run_idx IS 'The retries of a run';
COMMENT ON TABLE envrt.heartbeat_runs IS 'Runs: one turn of an agent, a CI job, a batch task; leases belong to one';
COMMENT ON COLUMN envrt.heartbeat_runs.status IS 'succeeded, failed, cancelled and timed_out are final: such a run gets no lease any more';

CREATE TABLE envrt.environment_leases (
    id uuid PRIMARY KEY DEFAULT pg_catalog.gen_random_uuid(),
    company_id uuid NOT NULL REFERENCES envrt.companies ON DELETE CASCADE,
    environment_id uuid NOT NULL REFERENCES envrt.environments ON DELETE CASCADE,
    execution_workspace_id uuid REFERENCES envrt.execution_workspaces ON DELETE SET NULL,
    issue_id uuid,
    heartbeat_run_id uuid REFERENCES envrt.heartbeat_runs ON DELETE SET NULL,
    status text NOT NULL DEFAULT 'active'
        CONSTRAINT environment_leases_status_check
        CHECK (status OPERATOR(pg_catalog.=) ANY (ARRAY['active', 'released', 'expired', 'failed', 'retained'])),
    lease_policy text NOT NULL DEFAULT 'ephemeral'
        CONSTRAINT environment_leases_lease_policy_check
        CHECK (lease_policy OPERATOR(pg_catalog.=) ANY (ARRAY['ephemeral', 'reuse_by_environment', 'reuse_by_execution_workspace', 'retain_on_failure'])),
    provider text COLLATE pg_catalog."C"
        CONSTRAINT environment_leases_provider_max_600_bytes CHECK (pg_catalog.octet_length(provider) OPERATOR(pg_catalog.<=) 600),
    provider_lease_id text COLLATE pg_catalog."C"
        CONSTRAINT environment_leases_provider_lease_id_max_2000_bytes CHECK (pg_catalog.octet_length(provider_lease_id) OPERATOR(pg_catalog.<=) 2000),
    acquired_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    last_used_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    expires_at timestamptz,
    released_at timestamptz,
    failure_reason text,
    cleanup_status text
        CONSTRAINT environment_leases_cleanup_status_check
        CHECK (cleanup_status OPERATOR(pg_catalog.=) ANY (ARRAY['pending', 'success', 'failed'])),
    metadata jsonb,
    created_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    updated_at timestamptz NOT NULL DEFAULT pg_catalog.now()
) WITH (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);
CREATE INDEX environment_leases_company_last_used_idx ON envrt.environment_leases (company_id, last_used_at);
CREATE INDEX environment_leases_company_environment_status_idx ON envrt.environment_leases (company_id, environment_id, status);
CREATE INDEX environment_leases_company_execution_workspace_idx ON envrt.environment_leases (company_id, execution_workspace_id);
CREATE INDEX environment_leases_company_issue_idx ON envrt.environment_leases (company_id, issue_id);
CREATE INDEX environment_leases_heartbeat_run_idx ON envrt.environment_leases (heartbeat_run_id);
CREATE INDEX environment_leases_provider_lease_idx ON envrt.environment_leases (provider_lease_id);
COMMENT ON INDEX envrt.environment_leases_company_last_used_idx IS 'A company''s leases by last use';
COMMENT ON INDEX envrt.environment_leases_company_environment_status_idx IS 'The leases of an environment by status';
COMMENT ON INDEX envrt.environment_leases_company_execution_workspace_idx IS 'The leases of an execution workspace';
COMMENT ON INDEX envrt.environment_leases_company_issue_idx IS 'The leases of an issue';
COMMENT ON INDEX envrt.environment_leases_heartbeat_run_idx IS 'The leases of a run';
COMMENT ON INDEX envrt.environment_leases_provider_lease_idx IS 'The leases of a provider lease';
CREATE INDEX environment_leases_environment_idx ON envrt.environment_leases (environment_id);
COMMENT ON INDEX envrt.environment_leases_environment_idx IS 'The leases of an environment, whatever the company';
CREATE INDEX environment_leases_execution_workspace_idx ON envrt.environment_leases (execution_workspace_id) WHERE execution_workspace_id IS NOT NULL;
COMMENT ON INDEX envrt.environment_leases_execution_workspace_idx IS 'The leases of an execution workspace, whatever the company';
-- A reusable provider lease is held by one active lease at a time, whoever writes the rows. What a
-- plugin names alike for two companies is not for one of them to keep from the other.
CREATE UNIQUE INDEX environment_leases_holder_idx ON envrt.environment_leases (company_id, provider, provider_lease_id)
    WHERE status OPERATOR(pg_catalog.=) 'active' AND lease_policy OPERATOR(pg_catalog.=) ANY (ARRAY['reuse_by_environment', 'reuse_by_execution_workspace']);
-- What a reuse asks for: whether there has been a lease of the same thing before.
-- Hashed, since an image's name may be longer than what a btree takes.  No hash index: in one of these an INSERT reads
-- all entries with its hash, and a reusable environment has as many as it has had leases.
CREATE INDEX environment_leases_reuse_idx ON envrt.environment_leases (pg_catalog.hashtextextended(provider_lease_id OPERATOR(pg_catalog.||) (metadata OPERATOR(pg_catalog.->>) 'image'), 0))
    WHERE lease_policy OPERATOR(pg_catalog.=) 'reuse_by_environment';
COMMENT ON INDEX envrt.environment_leases_reuse_idx IS 'Earlier leases of one reusable provider lease and image';
-- What the scheduler asks for: the lease that ends next.
CREATE INDEX environment_leases_expiry_idx ON envrt.environment_leases (expires_at)
    WHERE status OPERATOR(pg_catalog.=) ANY (ARRAY['active', 'retained']) AND expires_at IS NOT NULL;
COMMENT ON INDEX envrt.environment_leases_expiry_idx IS 'The lease that expires next';
-- Leases that hold something; few, whatever the table's size.
CREATE INDEX environment_leases_active_idx ON envrt.environment_leases (id)
    WHERE status OPERATOR(pg_catalog.=) ANY (ARRAY['active', 'retained']);
COMMENT ON INDEX envrt.environment_leases_active_idx IS 'Leases that have not ended';
-- What a release asks for: the active leases of a run, whatever it has had before.  No other index can be taken for
-- the expression, so a plan that was made while the table was empty is right for ever.
CREATE INDEX environment_leases_active_run_idx ON envrt.environment_leases ((CASE WHEN status OPERATOR(pg_catalog.=) 'active' THEN heartbeat_run_id END))
    WHERE (CASE WHEN status OPERATOR(pg_catalog.=) 'active' THEN heartbeat_run_id END) IS NOT NULL;
COMMENT ON INDEX envrt.environment_leases_active_run_idx IS 'The active leases of a run';
COMMENT ON TABLE envrt.environment_leases IS 'Leases: a run''s right to use an environment';
COMMENT ON COLUMN envrt.environment_leases.status IS 'active until released, expired, failed, or (a failed retain_on_failure lease) retained';
COMMENT ON COLUMN envrt.environment_leases.cleanup_status IS 'What became of the provider lease after the end: pending, success, failed; null when there was nothing to clean';
COMMENT ON COLUMN envrt.environment_leases.metadata IS 'What the driver said, and driver and executionWorkspaceMode as they were at acquire';
COMMENT ON INDEX envrt.environment_leases_holder_idx IS 'One active lease of a company per reusable provider lease';

CREATE TABLE envrt.company_secrets (
    id uuid PRIMARY KEY DEFAULT pg_catalog.gen_random_uuid(),
    company_id uuid NOT NULL REFERENCES envrt.companies,
    name text NOT NULL
        CONSTRAINT company_secrets_name_max_2000_bytes CHECK (pg_catalog.octet_length(name) OPERATOR(pg_catalog.<=) 2000),
    provider text NOT NULL DEFAULT 'local_encrypted'
        CONSTRAINT company_secrets_provider_max_2000_bytes CHECK (pg_catalog.octet_length(provider) OPERATOR(pg_catalog.<=) 2000),
    external_ref text,
    latest_version integer NOT NULL DEFAULT 1
        CONSTRAINT company_secrets_latest_version_check CHECK (latest_version OPERATOR(pg_catalog.>) 0),
    description text,
    created_by_agent_id uuid REFERENCES envrt.agents ON DELETE SET NULL,
    created_by_user_id text,
    created_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    updated_at timestamptz NOT NULL DEFAULT pg_catalog.now()
);
CREATE INDEX company_secrets_company_provider_idx ON envrt.company_secrets (company_id, provider);
CREATE INDEX company_secrets_company_idx ON envrt.company_secrets (company_id);
CREATE UNIQUE INDEX company_secrets_company_name_uq ON envrt.company_secrets (company_id, name);
COMMENT ON INDEX envrt.company_secrets_company_provider_idx IS 'A company''s secrets by provider';
COMMENT ON INDEX envrt.company_secrets_company_idx IS 'A company''s secrets';
COMMENT ON INDEX envrt.company_secrets_company_name_uq IS 'A name is that of one secret of its company';
CREATE INDEX company_secrets_created_by_agent_idx ON envrt.company_secrets (created_by_agent_id) WHERE created_by_agent_id IS NOT NULL;
COMMENT ON INDEX envrt.company_secrets_created_by_agent_idx IS 'The secrets that an agent has made';
COMMENT ON TABLE envrt.company_secrets IS 'Secrets by name; their values are in company_secret_versions, encrypted';

CREATE TABLE envrt.company_secret_versions (
    id uuid PRIMARY KEY DEFAULT pg_catalog.gen_random_uuid(),
    secret_id uuid NOT NULL REFERENCES envrt.company_secrets ON DELETE CASCADE,
    version integer NOT NULL
        CONSTRAINT company_secret_versions_version_check CHECK (version OPERATOR(pg_catalog.>) 0),
    material jsonb NOT NULL,
    value_sha256 text COLLATE pg_catalog."C" NOT NULL
        CONSTRAINT company_secret_versions_value_sha256_max_2000_bytes CHECK (pg_catalog.octet_length(value_sha256) OPERATOR(pg_catalog.<=) 2000),
    created_by_agent_id uuid REFERENCES envrt.agents ON DELETE SET NULL,
    created_by_user_id text,
    created_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    revoked_at timestamptz
);
CREATE INDEX company_secret_versions_value_sha256_idx ON envrt.company_secret_versions (value_sha256);
CREATE UNIQUE INDEX company_secret_versions_secret_version_uq ON envrt.company_secret_versions (secret_id, version);
CREATE INDEX company_secret_versions_secret_idx ON envrt.company_secret_versions (secret_id, created_at);
COMMENT ON INDEX envrt.company_secret_versions_value_sha256_idx IS 'Versions by the hash of their value';
COMMENT ON INDEX envrt.company_secret_versions_secret_version_uq IS 'The versions of a secret, each of them once';
COMMENT ON INDEX envrt.company_secret_versions_secret_idx IS 'The versions of a secret in the order of their making';
CREATE INDEX company_secret_versions_created_by_agent_idx ON envrt.company_secret_versions (created_by_agent_id) WHERE created_by_agent_id IS NOT NULL;
COMMENT ON INDEX envrt.company_secret_versions_created_by_agent_idx IS 'The versions that an agent has made';
COMMENT ON TABLE envrt.company_secret_versions IS 'The encrypted values of secrets, a row a version';
COMMENT ON COLUMN envrt.company_secret_versions.material IS 'XChaCha20-Poly1305 ciphertext bound to company, secret and version: a row copied elsewhere does not decrypt';
COMMENT ON COLUMN envrt.company_secret_versions.value_sha256 IS 'A keyed hash (HMAC-SHA-256) of the value, never a plain digest';

CREATE TABLE envrt.plugins (
    id uuid PRIMARY KEY DEFAULT pg_catalog.gen_random_uuid(),
    plugin_key text COLLATE pg_catalog."C" NOT NULL
        CONSTRAINT plugins_plugin_key_max_2000_bytes CHECK (pg_catalog.octet_length(plugin_key) OPERATOR(pg_catalog.<=) 2000),
    package_name text NOT NULL,
    package_path text,
    version text NOT NULL,
    api_version integer NOT NULL DEFAULT 1,
    categories jsonb NOT NULL DEFAULT '[]',
    manifest_json jsonb NOT NULL,
    status text NOT NULL DEFAULT 'installed'
        CONSTRAINT plugins_status_check
        CHECK (status OPERATOR(pg_catalog.=) ANY (ARRAY['installed', 'ready', 'disabled', 'error', 'upgrade_pending', 'uninstalled'])),
    install_order integer,
    last_error text,
    installed_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    updated_at timestamptz NOT NULL DEFAULT pg_catalog.now()
);
CREATE UNIQUE INDEX plugins_plugin_key_idx ON envrt.plugins (plugin_key);
CREATE INDEX plugins_status_idx ON envrt.plugins (status);
COMMENT ON INDEX envrt.plugins_plugin_key_idx IS 'A plugin is installed once';
COMMENT ON INDEX envrt.plugins_status_idx IS 'Plugins by status';
COMMENT ON TABLE envrt.plugins IS
'What this database says of plugins that are installed on the machine: one whose status is not ready can''t be used here; one without a row can. Nothing in a row makes a plugin: what runs is in envrt.plugin_path';
COMMENT ON COLUMN envrt.plugins.plugin_key IS 'The id in the plugin''s manifest';
COMMENT ON COLUMN envrt.plugins.package_path IS 'For people, never read by envrt';
COMMENT ON COLUMN envrt.plugins.manifest_json IS 'The manifest as envrt_reload_plugins found it, for people; never read by envrt';
COMMENT ON COLUMN envrt.plugins.status IS
'ready: can be used. error: its manifest is wrong; uninstalled: it has gone: both set by envrt_reload_plugins. disabled, upgrade_pending: by a person, who alone can change them. installed: not yet approved';

CREATE TABLE envrt.activity_log (
    id uuid PRIMARY KEY DEFAULT pg_catalog.gen_random_uuid(),
    company_id uuid NOT NULL REFERENCES envrt.companies,
    actor_type text NOT NULL DEFAULT 'system',
    actor_id text NOT NULL,
    action text NOT NULL,
    entity_type text COLLATE pg_catalog."C" NOT NULL
        CONSTRAINT activity_log_entity_type_max_1000_bytes CHECK (pg_catalog.octet_length(entity_type) OPERATOR(pg_catalog.<=) 1000),
    entity_id text COLLATE pg_catalog."C" NOT NULL
        CONSTRAINT activity_log_entity_id_max_1000_bytes CHECK (pg_catalog.octet_length(entity_id) OPERATOR(pg_catalog.<=) 1000),
    agent_id uuid REFERENCES envrt.agents,
    details jsonb,
    created_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    run_id uuid REFERENCES envrt.heartbeat_runs
);
CREATE INDEX activity_log_company_created_idx ON envrt.activity_log (company_id, created_at);
CREATE INDEX activity_log_run_id_idx ON envrt.activity_log (run_id);
CREATE INDEX activity_log_entity_type_id_idx ON envrt.activity_log (entity_type, entity_id);
COMMENT ON INDEX envrt.activity_log_company_created_idx IS 'A company''s log in order';
COMMENT ON INDEX envrt.activity_log_run_id_idx IS 'A run''s log';
COMMENT ON INDEX envrt.activity_log_entity_type_id_idx IS 'What the log says of one thing';
CREATE INDEX activity_log_agent_idx ON envrt.activity_log (agent_id) WHERE agent_id IS NOT NULL;
COMMENT ON INDEX envrt.activity_log_agent_idx IS 'An agent''s log';
COMMENT ON TABLE envrt.activity_log IS 'What was done, by whom';

-- ---------------------------------------------------------------------------------------------
-- envrt's own tables
-- ---------------------------------------------------------------------------------------------

CREATE TABLE envrt.settings (
    name text COLLATE pg_catalog."C" PRIMARY KEY
        CONSTRAINT settings_name_max_2000_bytes CHECK (pg_catalog.octet_length(name) OPERATOR(pg_catalog.<=) 2000),
    value text NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT pg_catalog.now()
);
COMMENT ON TABLE envrt.settings IS 'What envrt remembers about this database, such as the fingerprint of the master key its secrets are under';

-- Not in a dump: a copy of the database must not take the original's provider leases for its own.
-- Truncating it at the end of a vacuum would lock out the scheduler, which does not wait for locks.
CREATE TABLE envrt.provider_leases (
    lease_id uuid PRIMARY KEY,
    holder_id uuid,
    system_identifier bigint NOT NULL,
    database_id oid NOT NULL,
    timeline bigint NOT NULL,
    instance uuid NOT NULL,
    company_id uuid NOT NULL,
    environment_id uuid NOT NULL,
    execution_workspace_id uuid,
    driver text NOT NULL,
    driver_key text COLLATE pg_catalog."C" NOT NULL,
    plugin_key text COLLATE pg_catalog."C",
    lease_policy text NOT NULL
        CONSTRAINT provider_leases_lease_policy_check
        CHECK (lease_policy OPERATOR(pg_catalog.=) ANY (ARRAY['ephemeral', 'reuse_by_environment', 'reuse_by_execution_workspace', 'retain_on_failure'])),
    provider_lease_id text COLLATE pg_catalog."C",
    config jsonb NOT NULL,
    environment_config jsonb NOT NULL,
    secrets bytea,
    metadata jsonb,
    expires_at timestamptz,
    owner xid8,
    host_instance text COLLATE pg_catalog."C",
    fence bigint NOT NULL DEFAULT 1,
    state text NOT NULL DEFAULT 'creating'
        CONSTRAINT provider_leases_state_check
        CHECK (state OPERATOR(pg_catalog.=) ANY (ARRAY['creating', 'held', 'idle', 'cleaning', 'unresolved'])),
    resumed boolean NOT NULL DEFAULT false,
    doomed boolean NOT NULL DEFAULT false,
    cleanup text
        CONSTRAINT provider_leases_cleanup_check
        CHECK (cleanup OPERATOR(pg_catalog.=) ANY (ARRAY['release', 'destroy', 'keep', 'report', 'report_keep'])),
    attempts integer NOT NULL DEFAULT 0,
    next_attempt_at timestamptz,
    last_error text,
    created_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    updated_at timestamptz NOT NULL DEFAULT pg_catalog.now()
) WITH (fillfactor = 70, vacuum_truncate = off, autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);
CREATE UNIQUE INDEX provider_leases_holder_idx ON envrt.provider_leases (holder_id) WHERE holder_id IS NOT NULL;
CREATE INDEX provider_leases_due_idx ON envrt.provider_leases (next_attempt_at) WHERE state OPERATOR(pg_catalog.=) ANY (ARRAY['idle', 'cleaning']);
CREATE INDEX provider_leases_reuse_idx ON envrt.provider_leases (environment_id)
    WHERE lease_policy OPERATOR(pg_catalog.=) ANY (ARRAY['reuse_by_environment', 'reuse_by_execution_workspace']);
-- Names may be longer than what a btree takes.
CREATE INDEX provider_leases_provider_lease_idx ON envrt.provider_leases USING hash (provider_lease_id);
COMMENT ON INDEX envrt.provider_leases_provider_lease_idx IS 'What has the same name at its provider';
COMMENT ON INDEX envrt.provider_leases_holder_idx IS 'The provider lease of a lease';
CREATE INDEX provider_leases_company_due_idx ON envrt.provider_leases (company_id, next_attempt_at) WHERE state OPERATOR(pg_catalog.=) ANY (ARRAY['idle', 'cleaning']);
COMMENT ON INDEX envrt.provider_leases_company_due_idx IS 'What of a company is to be cleaned up next';
COMMENT ON INDEX envrt.provider_leases_due_idx IS 'What is to be cleaned up next';
COMMENT ON INDEX envrt.provider_leases_reuse_idx IS 'The reusable provider leases of an environment';
COMMENT ON TABLE envrt.provider_leases IS
'The ledger: every provider lease that may exist, with all that its cleanup needs. Written by the scheduler alone; see the view stat_cleanup';
COMMENT ON COLUMN envrt.provider_leases.lease_id IS 'The key under which the provider made it: the id of the lease it was made for';
COMMENT ON COLUMN envrt.provider_leases.holder_id IS 'The lease that has it, is to get it, or had it last; null while idle';
COMMENT ON COLUMN envrt.provider_leases.instance IS 'The data directory whose server made it; a server acts on its own only';
COMMENT ON COLUMN envrt.provider_leases.owner IS 'While creating: the transaction that decides whether it is held';
COMMENT ON COLUMN envrt.provider_leases.state IS
'creating: asked for, its transaction is under way; held: by holder_id; idle: kept for reuse; cleaning: to be released or destroyed; unresolved: whether it exists can''t be found out';
COMMENT ON COLUMN envrt.provider_leases.cleanup IS
'While cleaning, what is to be done: release, destroy, keep (release, and keep it for reuse), report and report_keep (done: only the lease''s cleanup_status is to be set)';
COMMENT ON COLUMN envrt.provider_leases.environment_config IS 'The environment''s config it was made by: with another one it is not reused';
COMMENT ON COLUMN envrt.provider_leases.secrets IS 'Values of the secrets in config, encrypted, so that it can be cleaned up after they were deleted';

CREATE TABLE envrt.lease_requests (
    lease_id uuid PRIMARY KEY,
    system_identifier bigint NOT NULL,
    database_id oid NOT NULL,
    timeline bigint NOT NULL,
    instance uuid NOT NULL,
    company_id uuid NOT NULL,
    environment_id uuid NOT NULL,
    heartbeat_run_id uuid NOT NULL,
    issue_id uuid,
    execution_workspace_id uuid,
    execution_workspace_mode text,
    expires_in interval,
    state text NOT NULL DEFAULT 'queued'
        CONSTRAINT lease_requests_state_check CHECK (state OPERATOR(pg_catalog.=) ANY (ARRAY['queued', 'failed'])),
    sqlstate text,
    message text,
    detail text,
    hint text,
    created_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    finished_at timestamptz
) WITH (vacuum_truncate = off, autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);
CREATE INDEX lease_requests_queued_idx ON envrt.lease_requests (company_id, created_at, lease_id) WHERE state OPERATOR(pg_catalog.=) 'queued';
CREATE INDEX lease_requests_finished_idx ON envrt.lease_requests (finished_at) WHERE state OPERATOR(pg_catalog.=) 'failed';
COMMENT ON INDEX envrt.lease_requests_queued_idx IS 'Requests that wait for the scheduler, which serves companies in turn';
COMMENT ON INDEX envrt.lease_requests_finished_idx IS 'Failed requests, which are forgotten after a day';
COMMENT ON TABLE envrt.lease_requests IS
'Leases that envrt_request_lease has asked for and the scheduler has not acquired yet, and for a day those that failed';

-- Not in a dump: what runs here does not run where it is restored.
CREATE TABLE envrt.executions (
    id uuid PRIMARY KEY,
    system_identifier bigint NOT NULL,
    database_id oid NOT NULL,
    timeline bigint NOT NULL,
    instance uuid NOT NULL,
    company_id uuid NOT NULL,
    environment_id uuid NOT NULL,
    lease_id uuid NOT NULL,
    heartbeat_run_id uuid,
    command text NOT NULL,
    args text[] NOT NULL,
    cwd text,
    env jsonb,
    stdin bytea,
    timeout_ms bigint,
    state text NOT NULL DEFAULT 'queued'
        CONSTRAINT executions_state_check
        CHECK (state OPERATOR(pg_catalog.=) ANY (ARRAY['queued', 'running', 'exited', 'failed', 'cancelled', 'lost'])),
    exit_code integer,
    signal text,
    timed_out boolean,
    sqlstate text,
    message text,
    detail text,
    hint text,
    metadata jsonb,
    host_instance text COLLATE pg_catalog."C",
    cancel_requested_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    started_at timestamptz,
    finished_at timestamptz
) WITH (fillfactor = 70, vacuum_truncate = off, autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);
CREATE INDEX executions_queued_idx ON envrt.executions (company_id, created_at, id) WHERE state OPERATOR(pg_catalog.=) 'queued';
CREATE INDEX executions_running_idx ON envrt.executions (created_at, id) WHERE state OPERATOR(pg_catalog.=) 'running';
CREATE INDEX executions_cancelled_idx ON envrt.executions (id) WHERE state OPERATOR(pg_catalog.=) ANY (ARRAY['queued', 'running']) AND cancel_requested_at IS NOT NULL;
CREATE INDEX executions_finished_idx ON envrt.executions (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX executions_lease_idx ON envrt.executions (lease_id);
COMMENT ON INDEX envrt.executions_queued_idx IS 'Executions that wait for the scheduler, which serves companies in turn';
COMMENT ON INDEX envrt.executions_running_idx IS 'Executions that run';
COMMENT ON INDEX envrt.executions_cancelled_idx IS 'Executions that are to be cancelled';
COMMENT ON INDEX envrt.executions_finished_idx IS 'What is to be forgotten next, see envrt.execution_retention';
COMMENT ON INDEX envrt.executions_lease_idx IS 'The executions of a lease';
COMMENT ON TABLE envrt.executions IS
'Commands that envrt_start_execution has asked for. Row-level security shows those of companies whose rows the role can see';
COMMENT ON COLUMN envrt.executions.env IS 'Until it has started: its variables; secrets are references';
COMMENT ON COLUMN envrt.executions.stdin IS 'Until it has started: its input';
COMMENT ON COLUMN envrt.executions.state IS
'queued until the transaction that asks has committed and the scheduler starts it, then running; exited: the command ended, see exit_code, signal, timed_out; failed: the driver did, see sqlstate and message; cancelled; lost: the driver host or the server ended while it ran';
COMMENT ON COLUMN envrt.executions.host_instance IS 'The driver host that runs it';
ALTER TABLE envrt.executions ENABLE ROW LEVEL SECURITY;
CREATE POLICY executions_of_visible_companies ON envrt.executions FOR SELECT
    USING (EXISTS (SELECT FROM envrt.companies c WHERE c.id OPERATOR(pg_catalog.=) company_id));
COMMENT ON POLICY executions_of_visible_companies ON envrt.executions IS 'Who can see a company can see its executions';

CREATE TABLE envrt.execution_output (
    execution_id uuid NOT NULL,
    position bigint NOT NULL,
    stream text NOT NULL
        CONSTRAINT execution_output_stream_check CHECK (stream OPERATOR(pg_catalog.=) ANY (ARRAY['stdout', 'stderr'])),
    output text NOT NULL,
    data bytea,
    size bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    PRIMARY KEY (execution_id, position)
) WITH (vacuum_truncate = off);
COMMENT ON TABLE envrt.execution_output IS
'What executions have written, as it came: in pieces, mostly lines, in order of position.';
COMMENT ON COLUMN envrt.execution_output.size IS 'What the execution''s output takes up to here, in bytes, about: see envrt.max_execution_output';
COMMENT ON COLUMN envrt.execution_output.data IS 'The bytes, where these are not what output says: no text, or not in the database''s encoding';
ALTER TABLE envrt.execution_output ENABLE ROW LEVEL SECURITY;
CREATE POLICY output_of_visible_executions ON envrt.execution_output FOR SELECT
    USING (EXISTS (SELECT FROM envrt.executions e WHERE e.id OPERATOR(pg_catalog.=) execution_id));
COMMENT ON POLICY output_of_visible_executions ON envrt.execution_output IS 'Who can see an execution can see its output';

SELECT pg_catalog.pg_extension_config_dump('envrt.companies', '');
SELECT pg_catalog.pg_extension_config_dump('envrt.execution_workspaces', '');
SELECT pg_catalog.pg_extension_config_dump('envrt.environments', '');
SELECT pg_catalog.pg_extension_config_dump('envrt.agents', '');
SELECT pg_catalog.pg_extension_config_dump('envrt.heartbeat_runs', '');
SELECT pg_catalog.pg_extension_config_dump('envrt.environment_leases', '');
SELECT pg_catalog.pg_extension_config_dump('envrt.company_secrets', '');
SELECT pg_catalog.pg_extension_config_dump('envrt.company_secret_versions', '');
SELECT pg_catalog.pg_extension_config_dump('envrt.plugins', '');
SELECT pg_catalog.pg_extension_config_dump('envrt.activity_log', '');
SELECT pg_catalog.pg_extension_config_dump('envrt.settings', '');

-- ---------------------------------------------------------------------------------------------
-- Environments
-- ---------------------------------------------------------------------------------------------

CREATE FUNCTION @extschema@.envrt_create_environment(company_id uuid, name text, driver text, config jsonb DEFAULT '{}',
                                         description text DEFAULT NULL, metadata jsonb DEFAULT NULL)
RETURNS envrt.environments
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.envrt_create_environment(uuid, text, text, jsonb, text, jsonb) IS
'Validates the config, moves secrets in it (privateKey, what a plugin''s configSchema marks as a secret-ref) into company secrets, and stores the environment. A plugin''s config is validated by the plugin. Errors: 22023 bad argument or config, 42704 no such company, secret, provider or plugin, 55000 plugin not ready or no driver host, 38000 from the plugin, 23505 a second local environment';

CREATE FUNCTION @extschema@.envrt_ensure_local_environment(company_id uuid)
RETURNS envrt.environments
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.envrt_ensure_local_environment(uuid) IS
'The company''s one local environment, made if there is none; an existing one is returned as it is. Errors: 42704 no such company';

CREATE FUNCTION @extschema@.envrt_normalize_config(driver text, config jsonb)
RETURNS jsonb
AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION @extschema@.envrt_normalize_config(text, jsonb) IS
'The canonical stored shape of a driver''s config; touches nothing. Errors: 22023 naming the field, all issues in the DETAIL';

CREATE FUNCTION @extschema@.envrt_probe(environment_id uuid, OUT ok boolean, OUT driver text, OUT summary text, OUT details jsonb)
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.envrt_probe(uuid) IS
'Tries whether an environment can be used; a failing probe is a row with ok = false. Errors: 42704 no such environment, 55000 no driver host';

CREATE FUNCTION @extschema@.envrt_probe_config(company_id uuid, driver text, config jsonb,
                                   OUT ok boolean, OUT driver text, OUT summary text, OUT details jsonb)
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.envrt_probe_config(uuid, text, jsonb) IS
'Like envrt_probe, for a config that is not stored; nothing is stored, secrets in it are used as they are. Errors: 42704 no such company, 55000 no driver host, 22023 bad config, or one that its plugin does not accept';

-- ---------------------------------------------------------------------------------------------
-- Leases
-- ---------------------------------------------------------------------------------------------

CREATE FUNCTION @extschema@.envrt_acquire_lease(company_id uuid, environment_id uuid, heartbeat_run_id uuid, issue_id uuid DEFAULT NULL,
                                    execution_workspace_id uuid DEFAULT NULL, execution_workspace_mode text DEFAULT NULL,
                                    expires_in interval DEFAULT NULL)
RETURNS envrt.environment_leases
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.envrt_acquire_lease(uuid, uuid, uuid, uuid, uuid, text, interval) IS
'Leases the environment to the run, in the caller''s transaction, and returns the active lease. It ends by itself expires_in from now (default: envrt.lease_default_ttl). execution_workspace_mode (default: the workspace''s) goes into its metadata. Errors: 22023 bad argument or config, 42704 no such company, environment, run or workspace, 42501 belongs to another company, 55000 environment not active, run over or no driver host, 55P03 reusable provider lease held, 08001/08004/08006/28000/38000 from the driver';

CREATE FUNCTION @extschema@.envrt_release_leases(heartbeat_run_id uuid, status text DEFAULT 'released', failure_reason text DEFAULT NULL)
RETURNS SETOF envrt.environment_leases
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 1;
COMMENT ON FUNCTION @extschema@.envrt_release_leases(uuid, text, text) IS
'Ends all active leases of a run (status released, expired or failed) and returns them; of concurrent calls exactly one gets them, the others no rows, as for a run that does not exist. Errors: 22023 no such status';

CREATE FUNCTION @extschema@.envrt_release_lease(lease_id uuid, status text DEFAULT 'released', failure_reason text DEFAULT NULL)
RETURNS SETOF envrt.environment_leases
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 1;
COMMENT ON FUNCTION @extschema@.envrt_release_lease(uuid, text, text) IS
'Ends one active lease (status released, expired or failed) and returns it; no row when it is not active. Errors: 42704 no such lease, 22023 no such status';

CREATE FUNCTION @extschema@.envrt_renew_lease(lease_id uuid, expires_in interval)
RETURNS envrt.environment_leases
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.envrt_renew_lease(uuid, interval) IS
'Moves the expiry of an active lease to expires_in from now. Errors: 22023 not positive, 42704 no such lease, 55000 no longer active';

CREATE FUNCTION envrt.on_lease_expiry()
RETURNS trigger
AS 'MODULE_PATHNAME', 'envrt_on_lease_expiry' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION envrt.on_lease_expiry() IS
'Trigger on environment_leases: tells the scheduler, at commit, when a lease is to expire';

CREATE TRIGGER envrt_lease_expiry AFTER INSERT OR UPDATE OF expires_at, status ON envrt.environment_leases
    FOR EACH ROW WHEN (NEW.expires_at IS NOT NULL AND NEW.status OPERATOR(pg_catalog.=) ANY (ARRAY['active', 'retained']))
    EXECUTE FUNCTION envrt.on_lease_expiry();
COMMENT ON TRIGGER envrt_lease_expiry ON envrt.environment_leases IS 'Tells the scheduler when the lease is to expire, whoever writes it';

CREATE FUNCTION envrt.on_lease_change()
RETURNS trigger
AS 'MODULE_PATHNAME', 'envrt_on_lease_change' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION envrt.on_lease_change() IS
'Trigger on environment_leases: has the scheduler look, after the commit, at the provider leases of leases that began or ended';

CREATE TRIGGER envrt_lease_begun AFTER INSERT ON envrt.environment_leases
    FOR EACH ROW WHEN (NEW.status OPERATOR(pg_catalog.=) ANY (ARRAY['active', 'retained']) AND NEW.provider OPERATOR(pg_catalog.<>) ALL (ARRAY['local', 'ssh', 'fake']))
    EXECUTE FUNCTION envrt.on_lease_change();
CREATE TRIGGER envrt_lease_ended AFTER UPDATE OF status, id ON envrt.environment_leases
    FOR EACH ROW WHEN (OLD.status OPERATOR(pg_catalog.=) ANY (ARRAY['active', 'retained']) AND OLD.provider OPERATOR(pg_catalog.<>) ALL (ARRAY['local', 'ssh', 'fake']))
    EXECUTE FUNCTION envrt.on_lease_change();
CREATE TRIGGER envrt_lease_deleted AFTER DELETE ON envrt.environment_leases
    FOR EACH ROW WHEN (OLD.status OPERATOR(pg_catalog.=) ANY (ARRAY['active', 'retained']) AND OLD.provider OPERATOR(pg_catalog.<>) ALL (ARRAY['local', 'ssh', 'fake']))
    EXECUTE FUNCTION envrt.on_lease_change();
CREATE TRIGGER envrt_leases_truncated AFTER TRUNCATE ON envrt.environment_leases
    FOR EACH STATEMENT EXECUTE FUNCTION envrt.on_lease_change();
-- They only say that it is time to look, which holds for rows that replication or a restore writes as well.
ALTER TABLE envrt.environment_leases ENABLE ALWAYS TRIGGER envrt_lease_expiry;
ALTER TABLE envrt.environment_leases ENABLE ALWAYS TRIGGER envrt_lease_begun;
ALTER TABLE envrt.environment_leases ENABLE ALWAYS TRIGGER envrt_lease_ended;
ALTER TABLE envrt.environment_leases ENABLE ALWAYS TRIGGER envrt_lease_deleted;
ALTER TABLE envrt.environment_leases ENABLE ALWAYS TRIGGER envrt_leases_truncated;
COMMENT ON TRIGGER envrt_lease_begun ON envrt.environment_leases IS 'Has the scheduler look at the lease''s provider lease';
COMMENT ON TRIGGER envrt_lease_ended ON envrt.environment_leases IS 'Has the scheduler clean up, whoever ends the lease';
COMMENT ON TRIGGER envrt_lease_deleted ON envrt.environment_leases IS 'Has the scheduler clean up, whoever deletes the lease';
COMMENT ON TRIGGER envrt_leases_truncated ON envrt.environment_leases IS 'Has the scheduler clean up, whoever truncates the leases';

CREATE FUNCTION envrt.on_command_lease_end()
RETURNS trigger
AS 'MODULE_PATHNAME', 'envrt_on_command_lease_end' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION envrt.on_command_lease_end() IS
'Trigger on environment_leases: has the scheduler look, after the commit, whether executions run in a lease that has ended';

CREATE TRIGGER envrt_command_lease_ended AFTER UPDATE OF status, id ON envrt.environment_leases
    FOR EACH ROW WHEN (OLD.status OPERATOR(pg_catalog.=) 'active' AND coalesce(OLD.provider, '') OPERATOR(pg_catalog.<>) ALL (ARRAY['local', 'fake']))
    EXECUTE FUNCTION envrt.on_command_lease_end();
CREATE TRIGGER envrt_command_lease_deleted AFTER DELETE ON envrt.environment_leases
    FOR EACH ROW WHEN (OLD.status OPERATOR(pg_catalog.=) 'active' AND coalesce(OLD.provider, '') OPERATOR(pg_catalog.<>) ALL (ARRAY['local', 'fake']))
    EXECUTE FUNCTION envrt.on_command_lease_end();
CREATE TRIGGER envrt_command_leases_truncated AFTER TRUNCATE ON envrt.environment_leases
    FOR EACH STATEMENT EXECUTE FUNCTION envrt.on_command_lease_end();
ALTER TABLE envrt.environment_leases ENABLE ALWAYS TRIGGER envrt_command_lease_ended;
ALTER TABLE envrt.environment_leases ENABLE ALWAYS TRIGGER envrt_command_lease_deleted;
ALTER TABLE envrt.environment_leases ENABLE ALWAYS TRIGGER envrt_command_leases_truncated;
COMMENT ON TRIGGER envrt_command_lease_ended ON envrt.environment_leases IS 'Ends executions in the lease, whoever ends it';
COMMENT ON TRIGGER envrt_command_lease_deleted ON envrt.environment_leases IS 'Ends executions in the lease, whoever deletes it';
COMMENT ON TRIGGER envrt_command_leases_truncated ON envrt.environment_leases IS 'Ends executions in the leases, whoever truncates them';

CREATE FUNCTION envrt.on_environment_change()
RETURNS trigger
AS 'MODULE_PATHNAME', 'envrt_on_environment_change' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION envrt.on_environment_change() IS
'Trigger on environments: has the scheduler look, after the commit, which idle provider leases are of no use any more';

CREATE TRIGGER envrt_environment_changed AFTER UPDATE OF driver, status, config OR DELETE OR TRUNCATE ON envrt.environments
    FOR EACH STATEMENT EXECUTE FUNCTION envrt.on_environment_change();
ALTER TABLE envrt.environments ENABLE ALWAYS TRIGGER envrt_environment_changed;
COMMENT ON TRIGGER envrt_environment_changed ON envrt.environments IS 'Has the scheduler look at idle provider leases';

CREATE FUNCTION envrt.on_environment_delete()
RETURNS trigger
AS 'MODULE_PATHNAME', 'envrt_on_environment_delete' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION envrt.on_environment_delete() IS
'Trigger on environments: deletes the secrets that were made when the environment was created, unless another environment refers to them';

CREATE TRIGGER envrt_environment_deleted AFTER DELETE ON envrt.environments
    FOR EACH ROW EXECUTE FUNCTION envrt.on_environment_delete();
COMMENT ON TRIGGER envrt_environment_deleted ON envrt.environments IS 'Deletes the secrets that were made for the environment';

CREATE FUNCTION @extschema@.envrt_resume_lease(lease_id uuid)
RETURNS jsonb
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.envrt_resume_lease(uuid) IS
'Has the provider of an active lease resume what is behind it; {providerLeaseId, metadata, expiresAt} as it answers. Errors: 42704 no such lease, 55000 not active, 0A000 the driver has no resume, 38000 from the provider';

CREATE FUNCTION @extschema@.envrt_destroy_lease(lease_id uuid)
RETURNS envrt.environment_leases
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.envrt_destroy_lease(uuid) IS
'Ends an active or retained lease as failed; after the commit what is behind it is destroyed, also where it could be reused. Errors: 42704 no such lease, 55000 has ended already, 0A000 the driver has no destroy';

CREATE FUNCTION @extschema@.envrt_await_cleanup(lease_id uuid, timeout interval DEFAULT '30 s')
RETURNS text
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.envrt_await_cleanup(uuid, interval) IS
'Waits until the cleanup_status of a lease that has ended is no longer pending, and returns it: success or failed; null when there was nothing to clean; pending when the timeout was first. Errors: 42704 no such lease, 55000 not ended, or ended by the very transaction that asks';

CREATE FUNCTION @extschema@.envrt_retry_cleanup(lease_id uuid)
RETURNS void
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.envrt_retry_cleanup(uuid) IS
'Has a cleanup that failed, that waits for its next attempt, or that is unresolved tried again at once. Not undone by a ROLLBACK. Errors: 42704 nothing to clean up for this lease, 55000 no scheduler';

CREATE FUNCTION @extschema@.envrt_request_lease(company_id uuid, environment_id uuid, heartbeat_run_id uuid, issue_id uuid DEFAULT NULL,
                                    execution_workspace_id uuid DEFAULT NULL, execution_workspace_mode text DEFAULT NULL,
                                    expires_in interval DEFAULT NULL)
RETURNS uuid
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.envrt_request_lease(uuid, uuid, uuid, uuid, uuid, text, interval) IS
'Like envrt_acquire_lease, but the lease is acquired by the scheduler after the commit, without an outside call here: for triggers. Returns the id the lease will have; expires_in counts from then. Errors: those of bad arguments here, those of the acquire in envrt_await_lease';

CREATE FUNCTION @extschema@.envrt_await_lease(lease_id uuid, timeout interval DEFAULT '30 s')
RETURNS envrt.environment_leases
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.envrt_await_lease(uuid, interval) IS
'Waits for a lease of envrt_request_lease and returns it. Errors: those of the acquire, 42704 no such lease or request, 55000 requested by the very transaction that asks, 57014 the timeout was first';

-- ---------------------------------------------------------------------------------------------
-- Commands in a lease
-- ---------------------------------------------------------------------------------------------

CREATE FUNCTION @extschema@.envrt_execute(lease_id uuid, command text, args text[] DEFAULT '{}', cwd text DEFAULT NULL, env jsonb DEFAULT '{}',
                              stdin text DEFAULT NULL, timeout interval DEFAULT NULL,
                              OUT exit_code integer, OUT signal text, OUT timed_out boolean, OUT stdout text, OUT stderr text, OUT metadata jsonb)
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.envrt_execute(uuid, text, text[], text, jsonb, text, interval) IS
'Runs a command in an active lease and waits for it. A command that fails is a row: exit_code, or signal, or timed_out after timeout (default: the environment''s timeoutMs, else envrt.execute_timeout); output beyond envrt.max_output is dropped, metadata says so (what a plugin answers stays as it is). A value of env is a string, or {"type": "secret_ref", "secretId", "version"}. Errors: 22023 bad argument, 42704 no such lease or secret, 42501 no right to use secrets in env, 0A000 the driver runs no commands, 55000 lease not active or no driver host, 08001/08004/08006/28000/38000 from the driver';

CREATE FUNCTION @extschema@.envrt_execute_raw(lease_id uuid, command text, args text[] DEFAULT '{}', cwd text DEFAULT NULL, env jsonb DEFAULT '{}',
                                  stdin bytea DEFAULT NULL, timeout interval DEFAULT NULL,
                                  OUT exit_code integer, OUT signal text, OUT timed_out boolean, OUT stdout bytea, OUT stderr bytea, OUT metadata jsonb)
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.envrt_execute_raw(uuid, text, text[], text, jsonb, bytea, interval) IS
'Like envrt_execute, with stdin, stdout and stderr byte for byte';

CREATE FUNCTION @extschema@.envrt_realize_workspace(lease_id uuid, workspace jsonb DEFAULT '{}')
RETURNS jsonb
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.envrt_realize_workspace(uuid, jsonb) IS
'Says where a workspace is in an active lease: {cwd, metadata}. workspace: {localPath, remotePath, cwd, mode, metadata}, whose metadata.workspaceRealizationRequest may say where it comes from. A plugin''s lease has the plugin make the workspace, and its answer as it is; else metadata.workspaceRealization is a record of both sides, and nothing is done outside. Errors: 22023 bad argument, 42704 no such lease, 55000 lease not active or no driver host, 38000 from the plugin';

CREATE FUNCTION @extschema@.envrt_start_execution(lease_id uuid, command text, args text[] DEFAULT '{}', cwd text DEFAULT NULL, env jsonb DEFAULT '{}',
                                      stdin text DEFAULT NULL, timeout interval DEFAULT NULL)
RETURNS uuid
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.envrt_start_execution(uuid, text, text[], text, jsonb, text, interval) IS
'Like envrt_execute, but the command is run after the commit, by the scheduler, whoever goes away meanwhile; returns its id in envrt.executions. Its output comes in envrt.execution_output. It ends with its lease. Without a timeout and timeoutMs in the environment it may take a day. Errors: those of envrt_execute that do not need the driver''s answer';

CREATE FUNCTION @extschema@.envrt_await_execution(execution_id uuid, timeout interval DEFAULT NULL,
                                      OUT exit_code integer, OUT signal text, OUT timed_out boolean, OUT stdout text, OUT stderr text, OUT metadata jsonb)
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.envrt_await_execution(uuid, interval) IS
'Waits until an execution has ended (timeout null: for ever) and returns what envrt_execute would have; of each stream the first envrt.max_output. Errors: 42704 no such execution, 55000 started by the very transaction that asks, 57014 the timeout was first, or it was cancelled, 08006 it is lost, those of the driver';

CREATE FUNCTION @extschema@.envrt_cancel_execution(execution_id uuid)
RETURNS boolean
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.envrt_cancel_execution(uuid) IS
'Has an execution ended, at the commit: SIGTERM, and SIGKILL two seconds later. False when it has ended already. Errors: 42704 no such execution';

CREATE FUNCTION @extschema@.envrt_follow_execution(execution_id uuid, after bigint DEFAULT 0)
RETURNS SETOF envrt.execution_output
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.envrt_follow_execution(uuid, bigint) IS
'The rows of envrt.execution_output after a position, each as soon as it is there, until the execution has ended. In the select list of a cursor (psql: \set FETCH_COUNT 1) rows arrive while it runs; in FROM they come all at once. Errors: 42704 no such execution, 55000 started by the very transaction that asks';

CREATE FUNCTION @extschema@.envrt_push_files(lease_id uuid, local_path text, remote_path text DEFAULT NULL, force boolean DEFAULT false, OUT files bigint, OUT bytes bigint)
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.envrt_push_files(uuid, text, text, boolean) IS
'Copies a file, or what is in a directory, from the server (local_path, absolute) into the workspace of an active lease (remote_path, relative to the workspace or absolute below it; default: the workspace). Permissions and links are kept, each file appears at once and complete, nothing is removed, and what is equal there (size, permissions, time) is not sent, unless force. Returns the number of files and links that were sent, and bytes. Needs pg_read_server_files. Progress: envrt.stat_transfers. Errors: 22023 bad argument, 42704 no such lease, 42501 not allowed, a file of the server''s own, or a way through a link that may have come from a workspace, 0A000 the driver moves no files, 55000 lease not active, 58P01 no such file, 53100 disk full, 53400 a limit of the sandbox, 08006 no progress for envrt.provider_timeout, 08001/08004/28000/38000 from the driver';

CREATE FUNCTION @extschema@.envrt_pull_files(lease_id uuid, local_path text, remote_path text DEFAULT NULL, force boolean DEFAULT false, OUT files bigint, OUT bytes bigint)
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.envrt_pull_files(uuid, text, text, boolean) IS
'The other way round: from the workspace to the server, whose files become those of the server''s user. local_path is made when it is missing, not what it is in. What is made is writable for nobody but that user, and what would have a git run programs of the workspace is left out. Needs pg_write_server_files. Errors: as envrt_push_files, and 53400 more than envrt.max_pull, 42501 a file that is such a setting of a git';

CREATE FUNCTION envrt.use_secrets_in_env()
RETURNS void
AS 'MODULE_PATHNAME', 'envrt_use_secrets_in_env' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION envrt.use_secrets_in_env() IS
'Does nothing. EXECUTE on it is the right to give commands secrets in their env, and so to read these';

CREATE FUNCTION envrt.on_environment_config()
RETURNS trigger
AS 'MODULE_PATHNAME', 'envrt_on_environment_config' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION envrt.on_environment_config() IS
'Trigger on environments: whoever puts a reference to a secret into a config with SQL of his own must have the right to use secrets in env, and see the secret. Errors: 42501';

CREATE TRIGGER envrt_environment_config AFTER INSERT OR UPDATE OF config, driver, company_id ON envrt.environments
    FOR EACH ROW EXECUTE FUNCTION envrt.on_environment_config();
COMMENT ON TRIGGER envrt_environment_config ON envrt.environments IS 'Asks for the right to a secret where a reference to it is made, whoever makes it';

-- ---------------------------------------------------------------------------------------------
-- Ledger
-- ---------------------------------------------------------------------------------------------

CREATE FUNCTION @extschema@.envrt_claim_instance(action text)
RETURNS bigint
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.envrt_claim_instance(text) IS
'Says what this server is to provider leases in its ledger that another one made (a copy''s or a predecessor''s): take_over, it is their successor and looks after them from now on; forget, they are somebody else''s, their rows are dropped and leases without a provider lease of this server''s are ended. For superusers; at once, not undone by a ROLLBACK. Returns the number of ledger rows concerned. Errors: 22023 no such action, 42501 no superuser, 55000 no scheduler';

CREATE FUNCTION @extschema@.envrt_forget_provider_lease(lease_id uuid)
RETURNS void
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.envrt_forget_provider_lease(uuid) IS
'Drops a ledger row that is unresolved, or whose cleanup has failed for good, once a person has seen to it. At once, not undone by a ROLLBACK. Errors: 42704 no such row, 55000 it is neither, or no scheduler';

CREATE FUNCTION envrt.own_instance(OUT system_identifier bigint, OUT database_id oid, OUT timeline bigint, OUT instance uuid)
AS 'MODULE_PATHNAME', 'envrt_own_instance' LANGUAGE C STABLE PARALLEL UNSAFE;
COMMENT ON FUNCTION envrt.own_instance() IS 'What the ledger rows of this server have in these columns; nulls without preload';

CREATE VIEW envrt.stat_cleanup AS
    SELECT p.lease_id, p.holder_id, p.company_id, p.environment_id, p.driver, CASE WHEN p.driver OPERATOR(pg_catalog.=) 'plugin'
                THEN 'plugin:' OPERATOR(pg_catalog.||) p.plugin_key OPERATOR(pg_catalog.||) ':' OPERATOR(pg_catalog.||) p.driver_key
                ELSE p.driver_key END AS provider, p.provider_lease_id, p.lease_policy,
           p.state, p.cleanup, p.attempts, p.next_attempt_at, p.last_error,
           -- A standby has no launcher that says which server it is, nor has one without preload.
           CASE WHEN o.instance IS NULL THEN 'unknown'
                WHEN p.system_identifier OPERATOR(pg_catalog.=) o.system_identifier AND p.database_id OPERATOR(pg_catalog.=) o.database_id
                     AND p.timeline OPERATOR(pg_catalog.=) o.timeline AND p.instance OPERATOR(pg_catalog.=) o.instance
                THEN 'own' ELSE 'foreign' END AS made_by,
           p.created_at, p.updated_at
    FROM envrt.provider_leases p CROSS JOIN envrt.own_instance() o
    UNION ALL
    SELECT l.id, l.id, l.company_id, l.environment_id, l.metadata OPERATOR(pg_catalog.->>) 'driver', l.provider, l.provider_lease_id, l.lease_policy,
           'unknown', NULL, 0, NULL, 'The lease has no provider lease in this server''s ledger: its row was restored from a dump, or written by hand.', 'foreign',
           l.created_at, l.updated_at
    FROM envrt.environment_leases l
    WHERE l.status OPERATOR(pg_catalog.=) ANY (ARRAY['active', 'retained'])
      AND l.provider OPERATOR(pg_catalog.<>) ALL (ARRAY['local', 'ssh', 'fake'])
      AND NOT EXISTS (SELECT 1 FROM envrt.provider_leases p WHERE p.holder_id OPERATOR(pg_catalog.=) l.id);
COMMENT ON VIEW envrt.stat_cleanup IS
'The ledger without config and secrets: each provider lease that may exist, its state, attempts to clean it up, the next one (null: none by itself), the last error. made_by own: by this server; foreign: by another one, left alone until envrt_claim_instance; unknown: on a standby, which leaves all to its primary, and without preload';

-- ---------------------------------------------------------------------------------------------
-- Plugins
-- ---------------------------------------------------------------------------------------------

CREATE FUNCTION @extschema@.envrt_plugins(OUT plugin_key text, OUT version text, OUT display_name text, OUT path text, OUT state text, OUT pid integer,
                              OUT started_at timestamptz, OUT restarts bigint, OUT last_error text, OUT calls bigint, OUT failed_calls bigint,
                              OUT active_calls integer)
RETURNS SETOF record
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.envrt_plugins() IS
'The plugins that are installed in envrt.plugin_path, as the driver host knows them; see the view envrt.stat_plugins. No row without a driver host';

CREATE VIEW envrt.stat_plugins AS
    SELECT coalesce(h.plugin_key, p.plugin_key) AS plugin_key, p.id AS plugin_id, p.status, h.plugin_key IS NOT NULL AS installed,
           coalesce(h.version, p.version) AS version, h.display_name, h.path, h.state, h.pid, h.started_at, h.restarts,
           coalesce(h.last_error, p.last_error) AS last_error, h.calls, h.failed_calls, h.active_calls
    FROM @extschema@.envrt_plugins() h FULL JOIN envrt.plugins p ON p.plugin_key OPERATOR(pg_catalog.=) h.plugin_key;
COMMENT ON VIEW envrt.stat_plugins IS
'Plugins: their row in this database (plugin_id, status; null: none, which does no harm), whether they are installed, and of those that are: state of the worker (idle: not needed yet; starting, running; waiting: for its next start after it ended; invalid: the manifest is wrong), process, restarts, last error, calls served, failed and in flight';

CREATE FUNCTION @extschema@.envrt_reload_plugins()
RETURNS SETOF envrt.plugins
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.envrt_reload_plugins() IS
'Has the driver host read the folders of envrt.plugin_path again, and makes a row for each plugin found: ready, or error when its manifest is wrong. Those that are gone become uninstalled; disabled and upgrade_pending stay. Returns all rows. Running workers of plugins that have not changed go on. Errors: 55000 no driver host';

CREATE FUNCTION @extschema@.envrt_restart_plugin(plugin_key text)
RETURNS void
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.envrt_restart_plugin(text) IS
'Ends the plugin''s worker, for the whole server; the next call starts it again, without a delay after crashes. Errors: 42704 no such plugin is installed, 55000 no driver host';

CREATE FUNCTION envrt.plugin_metric_stats(OUT plugin_key text, OUT name text, OUT tags jsonb, OUT last double precision, OUT count bigint,
                                          OUT sum double precision, OUT updated_at timestamptz)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'envrt_plugin_metric_stats' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION envrt.plugin_metric_stats() IS 'Behind the view envrt.stat_plugin_metrics';

CREATE VIEW envrt.stat_plugin_metrics AS
    SELECT plugin_key, name, tags, last, count, sum, updated_at FROM envrt.plugin_metric_stats();
COMMENT ON VIEW envrt.stat_plugin_metrics IS
'What plugins have written by metrics.write since the driver host started: by name and tags the last value, how many and their sum';

-- ---------------------------------------------------------------------------------------------
-- Runs
-- ---------------------------------------------------------------------------------------------

CREATE FUNCTION @extschema@.envrt_on_heartbeat_run()
RETURNS trigger
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.envrt_on_heartbeat_run() IS
'Trigger on a table of runs: ends the leases of a run that is over or deleted, in the same transaction. failed and timed_out: as failed, with the run''s error as failure_reason; else released';

CREATE FUNCTION @extschema@.envrt_attach_runs(runs regclass)
RETURNS void
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.envrt_attach_runs(regclass) IS
'Puts envrt_on_heartbeat_run on a table with the columns id uuid and status (and perhaps error); again: no change. The caller needs the right to make triggers on it, and EXECUTE on envrt_on_heartbeat_run. Errors: 22023 no such columns, 42804 a status that is no text, 42501 not allowed, 42809 no table';

CREATE FUNCTION @extschema@.envrt_detach_runs(runs regclass)
RETURNS void
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.envrt_detach_runs(regclass) IS 'Takes the triggers of envrt_attach_runs off a table; no error when there are none';

SELECT @extschema@.envrt_attach_runs('envrt.heartbeat_runs'::pg_catalog.regclass);

-- ---------------------------------------------------------------------------------------------
-- Secrets
-- ---------------------------------------------------------------------------------------------

CREATE FUNCTION @extschema@.envrt_create_secret(company_id uuid, name text, value text, description text DEFAULT NULL)
RETURNS uuid
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.envrt_create_secret(uuid, text, text, text) IS
'Stores a company''s secret, encrypted. The value is part of the statement: use envrt_create_sealed_secret where statements are logged. Errors: 22023 name or value empty or too long (255 bytes, 64 kB), 23505 name taken, 42704 no such company, 55000 master key missing or wrong';

CREATE FUNCTION @extschema@.envrt_rotate_secret(secret_id uuid, value text)
RETURNS integer
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.envrt_rotate_secret(uuid, text) IS
'Stores a new version of a secret and returns its number. Errors: 22023 value empty or longer than 64 kB, 42704 no such secret, 55000 master key missing or wrong';

CREATE FUNCTION @extschema@.envrt_sealing_key()
RETURNS bytea
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.envrt_sealing_key() IS
'The public key (32 bytes, X25519) that clients seal secrets to with libsodium''s crypto_box_seal, over the JSON object {companyId, name, version, value}. Errors: 55000 master key missing or wrong';

CREATE FUNCTION @extschema@.envrt_create_sealed_secret(company_id uuid, name text, sealed bytea, description text DEFAULT NULL)
RETURNS uuid
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.envrt_create_sealed_secret(uuid, text, bytea, text) IS
'Like envrt_create_secret, with a value sealed by the client for this company and name and version 1. Errors: 22023 not sealed to this key, or for something else';

CREATE FUNCTION @extschema@.envrt_rotate_sealed_secret(secret_id uuid, sealed bytea)
RETURNS integer
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.envrt_rotate_sealed_secret(uuid, bytea) IS
'Like envrt_rotate_secret, with a value sealed by the client for the next version. Errors: 22023 not sealed to this key, or for something else';

CREATE FUNCTION @extschema@.envrt_delete_secret(secret_id uuid)
RETURNS void
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.envrt_delete_secret(uuid) IS
'Deletes a secret and all its versions. What has been made with it can still be cleaned up. Errors: 42704 no such secret, 55006 an environment''s config or an execution that has not ended refers to it';

-- ---------------------------------------------------------------------------------------------
-- Views
-- ---------------------------------------------------------------------------------------------

CREATE FUNCTION envrt.driver_host_stats(OUT pid integer, OUT state text, OUT up_since timestamptz, OUT restarts bigint,
                                        OUT last_exit text, OUT calls bigint, OUT active_calls integer, OUT memory bigint,
                                        OUT settings_since timestamptz)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'envrt_driver_host_stats' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION envrt.driver_host_stats() IS 'Behind the view envrt.stat_driver_host';

CREATE VIEW envrt.stat_driver_host AS
    SELECT pid, state, up_since, restarts, last_exit, calls, active_calls, memory, settings_since FROM envrt.driver_host_stats();
COMMENT ON VIEW envrt.stat_driver_host IS
'The driver host: its process, state (stopped, starting, running), restarts since the server started, why the last one ended, calls served and in flight, resident memory in bytes, since when it has its settings; no row without preload';

CREATE FUNCTION envrt.call_stats(OUT pid integer, OUT method text, OUT driver text, OUT target text, OUT state text,
                                 OUT since timestamptz)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'envrt_call_stats' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION envrt.call_stats() IS 'Behind the view envrt.stat_calls';

CREATE VIEW envrt.stat_calls AS
    SELECT pid, method, driver, target, state, since FROM envrt.call_stats();
COMMENT ON VIEW envrt.stat_calls IS 'Driver calls in flight: backend (null: an execution''s, which is nobody''s), method, driver, target, what it is waiting for, since when';

CREATE FUNCTION envrt.latency_stats(OUT driver text, OUT method text, OUT calls bigint, OUT errors bigint, OUT total double precision,
                                    OUT p50 double precision, OUT p95 double precision, OUT p99 double precision, OUT max double precision)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'envrt_latency_stats' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION envrt.latency_stats() IS 'Behind the view envrt.stat_latency';

CREATE VIEW envrt.stat_latency AS
    SELECT driver, method, calls, errors, total, p50, p95, p99, max FROM envrt.latency_stats();
COMMENT ON VIEW envrt.stat_latency IS
'How long driver calls took since the driver host started, by driver and method: calls that have ended, errors among them (cancelled ones too), and milliseconds: their sum, percentiles (too long by an eighth at most), the longest. Without executions, which have their own times';

CREATE FUNCTION envrt.ssh_session_stats(OUT host text, OUT port integer, OUT username text, OUT company_id uuid,
                                        OUT channels integer, OUT idle_since timestamptz, OUT calls bigint)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'envrt_ssh_session_stats' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION envrt.ssh_session_stats() IS 'Behind the view envrt.stat_ssh_sessions';

CREATE VIEW envrt.stat_ssh_sessions AS
    SELECT host, port, username AS "user", company_id, channels, idle_since, calls FROM envrt.ssh_session_stats();
COMMENT ON VIEW envrt.stat_ssh_sessions IS 'Open ssh sessions: whose, channels in use, idle since when (null: in use), calls served';

CREATE FUNCTION envrt.transfer_stats(OUT pid integer, OUT lease_id uuid, OUT driver text, OUT direction text, OUT local_path text,
                                     OUT remote_path text, OUT files bigint, OUT bytes bigint, OUT since timestamptz)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'envrt_transfer_stats' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION envrt.transfer_stats() IS 'Behind the view envrt.stat_transfers';

CREATE VIEW envrt.stat_transfers AS
    SELECT pid, lease_id, driver, direction, local_path, remote_path, files, bytes, since FROM envrt.transfer_stats();
COMMENT ON VIEW envrt.stat_transfers IS 'Transfers of files under way: backend, lease, push or pull, both paths, the files and bytes that have been moved so far, since when';

CREATE FUNCTION envrt.sandbox_stats(OUT lease_id uuid, OUT image text, OUT commands integer, OUT since timestamptz)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'envrt_sandbox_stats' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION envrt.sandbox_stats() IS 'Behind the view envrt.stat_sandboxes';

CREATE VIEW envrt.stat_sandboxes AS
    SELECT lease_id, image, commands, since FROM envrt.sandbox_stats();
COMMENT ON VIEW envrt.stat_sandboxes IS
'Bubblewrap sandboxes that this driver host has seen: the key of the provider lease, the image (null: the machine''s /usr), commands that run in it now, since when it is known';

CREATE FUNCTION envrt.scheduler_stats(OUT database_id oid, OUT pid integer, OUT state text, OUT since timestamptz, OUT failing integer)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'envrt_scheduler_stats' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION envrt.scheduler_stats() IS 'Behind the view envrt.stat_schedulers';

CREATE VIEW envrt.stat_schedulers AS
    SELECT s.database_id, d.datname AS database, s.pid, s.state, s.since, s.failing
    FROM envrt.scheduler_stats() s LEFT JOIN pg_catalog.pg_database d ON d.oid OPERATOR(pg_catalog.=) s.database_id;
COMMENT ON VIEW envrt.stat_schedulers IS 'The scheduler of each database that has envrt, on the whole server: starting, running, or stopping; failing: how many rows it could not deal with and tries again later, see stat_failures; no row without preload';

CREATE FUNCTION envrt.failure_stats(OUT activity text, OUT row_id uuid, OUT attempts integer, OUT since timestamptz, OUT last_attempt_at timestamptz,
                                    OUT next_attempt_at timestamptz, OUT sqlstate text, OUT last_error text)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'envrt_failure_stats' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION envrt.failure_stats() IS 'Behind the view envrt.stat_failures';

CREATE VIEW envrt.stat_failures AS
    SELECT activity, row_id, attempts, since, last_attempt_at, next_attempt_at, sqlstate, last_error FROM envrt.failure_stats();
COMMENT ON VIEW envrt.stat_failures IS
'What this database''s scheduler could not do, since a trigger, rule, foreign key or lock is in the way, and tries again later: the activity, the row it is about (null: the activity as a whole), failures in a row, since when, the last and the next try, the last error. At most 200 rows of the whole server are shown; stat_schedulers counts all';

-- ---------------------------------------------------------------------------------------------
-- Fault points, for tests
-- ---------------------------------------------------------------------------------------------

CREATE FUNCTION envrt.arm_fault_point(name text, action text DEFAULT 'wait')
RETURNS void
AS 'MODULE_PATHNAME', 'envrt_arm_fault_point' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION envrt.arm_fault_point(text, text) IS
'For tests, superusers only: whatever process of this server comes by that point of the code waits until it is disarmed, or ends (error, exit, crash). Errors: 22023 no such action, 53400 too many';

CREATE FUNCTION envrt.disarm_fault_point(name text)
RETURNS boolean
AS 'MODULE_PATHNAME', 'envrt_disarm_fault_point' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION envrt.disarm_fault_point(text) IS 'Disarms a fault point; those that wait at it go on. Whether it was armed';

CREATE FUNCTION envrt.fault_point_stats(OUT name text, OUT action text, OUT hits bigint, OUT waiting integer)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'envrt_fault_point_stats' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION envrt.fault_point_stats() IS 'Behind the view envrt.stat_fault_points';

CREATE VIEW envrt.stat_fault_points AS
    SELECT name, action, hits, waiting FROM envrt.fault_point_stats();
COMMENT ON VIEW envrt.stat_fault_points IS 'Armed fault points: how often they were reached, and how many processes wait at them';

-- ---------------------------------------------------------------------------------------------
-- Privileges: nothing for PUBLIC; statistics for monitoring roles
-- ---------------------------------------------------------------------------------------------

REVOKE ALL ON FUNCTION @extschema@.envrt_create_environment(uuid, text, text, jsonb, text, jsonb) FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.envrt_ensure_local_environment(uuid) FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.envrt_normalize_config(text, jsonb) FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.envrt_probe(uuid) FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.envrt_probe_config(uuid, text, jsonb) FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.envrt_acquire_lease(uuid, uuid, uuid, uuid, uuid, text, interval) FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.envrt_release_leases(uuid, text, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.envrt_release_lease(uuid, text, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.envrt_renew_lease(uuid, interval) FROM PUBLIC;
REVOKE ALL ON FUNCTION envrt.on_lease_expiry() FROM PUBLIC;
REVOKE ALL ON FUNCTION envrt.on_lease_change() FROM PUBLIC;
REVOKE ALL ON FUNCTION envrt.on_command_lease_end() FROM PUBLIC;
REVOKE ALL ON FUNCTION envrt.on_environment_change() FROM PUBLIC;
REVOKE ALL ON FUNCTION envrt.on_environment_delete() FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.envrt_resume_lease(uuid) FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.envrt_destroy_lease(uuid) FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.envrt_await_cleanup(uuid, interval) FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.envrt_retry_cleanup(uuid) FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.envrt_request_lease(uuid, uuid, uuid, uuid, uuid, text, interval) FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.envrt_await_lease(uuid, interval) FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.envrt_execute(uuid, text, text[], text, jsonb, text, interval) FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.envrt_execute_raw(uuid, text, text[], text, jsonb, bytea, interval) FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.envrt_realize_workspace(uuid, jsonb) FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.envrt_start_execution(uuid, text, text[], text, jsonb, text, interval) FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.envrt_await_execution(uuid, interval) FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.envrt_cancel_execution(uuid) FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.envrt_follow_execution(uuid, bigint) FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.envrt_push_files(uuid, text, text, boolean) FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.envrt_pull_files(uuid, text, text, boolean) FROM PUBLIC;
REVOKE ALL ON FUNCTION envrt.use_secrets_in_env() FROM PUBLIC;
REVOKE ALL ON FUNCTION envrt.on_environment_config() FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.envrt_claim_instance(text) FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.envrt_forget_provider_lease(uuid) FROM PUBLIC;
REVOKE ALL ON FUNCTION envrt.own_instance() FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.envrt_plugins() FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.envrt_reload_plugins() FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.envrt_restart_plugin(text) FROM PUBLIC;
REVOKE ALL ON FUNCTION envrt.plugin_metric_stats() FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.envrt_on_heartbeat_run() FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.envrt_attach_runs(regclass) FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.envrt_detach_runs(regclass) FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.envrt_create_secret(uuid, text, text, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.envrt_rotate_secret(uuid, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.envrt_sealing_key() FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.envrt_create_sealed_secret(uuid, text, bytea, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.envrt_rotate_sealed_secret(uuid, bytea) FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.envrt_delete_secret(uuid) FROM PUBLIC;
REVOKE ALL ON FUNCTION envrt.driver_host_stats() FROM PUBLIC;
REVOKE ALL ON FUNCTION envrt.call_stats() FROM PUBLIC;
REVOKE ALL ON FUNCTION envrt.latency_stats() FROM PUBLIC;
REVOKE ALL ON FUNCTION envrt.ssh_session_stats() FROM PUBLIC;
REVOKE ALL ON FUNCTION envrt.transfer_stats() FROM PUBLIC;
REVOKE ALL ON FUNCTION envrt.sandbox_stats() FROM PUBLIC;
REVOKE ALL ON FUNCTION envrt.scheduler_stats() FROM PUBLIC;
REVOKE ALL ON FUNCTION envrt.failure_stats() FROM PUBLIC;
REVOKE ALL ON FUNCTION envrt.arm_fault_point(text, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION envrt.disarm_fault_point(text) FROM PUBLIC;
REVOKE ALL ON FUNCTION envrt.fault_point_stats() FROM PUBLIC;

GRANT USAGE ON SCHEMA envrt TO pg_monitor;
GRANT EXECUTE ON FUNCTION envrt.driver_host_stats(), envrt.call_stats(), envrt.latency_stats(), envrt.ssh_session_stats(), envrt.sandbox_stats(), envrt.transfer_stats(), envrt.scheduler_stats(), envrt.failure_stats(), envrt.own_instance() TO pg_monitor;
GRANT SELECT ON envrt.stat_driver_host, envrt.stat_calls, envrt.stat_latency, envrt.stat_ssh_sessions, envrt.stat_sandboxes, envrt.stat_transfers, envrt.stat_schedulers, envrt.stat_failures, envrt.stat_cleanup TO pg_monitor;
GRANT EXECUTE ON FUNCTION @extschema@.envrt_plugins(), envrt.plugin_metric_stats() TO pg_monitor;
GRANT SELECT ON envrt.stat_plugins, envrt.stat_plugin_metrics TO pg_monitor;
