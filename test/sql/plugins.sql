-- Plugins: what is installed, what this database says of it, and who may change that.
-- What plugins do is tested in test/t.
\set helpers `echo "$PG_ABS_SRCDIR/lib/helpers.psql"`
\set ECHO none
\i :helpers

-- installed, without a row
SELECT plugin_key, version, display_name, path LIKE '%/test/plugins/recorder' AS path, state, pid, restarts, last_error, active_calls
FROM envrt_plugins() WHERE plugin_key = 'envrt.recorder';
SELECT plugin_id, status, installed, version FROM envrt.stat_plugins WHERE plugin_key = 'envrt.recorder';

-- rows for all there are; what has been decided by a person stays
INSERT INTO envrt.plugins (plugin_key, package_name, version, manifest_json, status, last_error)
VALUES ('envrt.journal', 'old', '0', '{}', 'disabled', NULL), ('envrt.journal-blind', 'old', '0', '{}', 'upgrade_pending', NULL),
       ('envrt.journal-keyed', 'old', '0', '{}', 'error', 'was broken'), ('gone', 'gone', '1', '{}', 'ready', NULL),
       ('gone-disabled', 'gone', '1', '{}', 'disabled', NULL), ('gone-pending', 'gone', '1', '{}', 'upgrade_pending', NULL), ('../up', 'x', '1', '{"entrypoints": {"worker": "/bin/true"}}', 'ready', NULL);
SELECT plugin_key, package_name, version, api_version, categories, manifest_json ->> 'displayName' AS name, status, last_error
FROM envrt_reload_plugins() WHERE plugin_key LIKE 'envrt.%' OR plugin_key IN ('gone', 'gone-disabled', 'gone-pending', '../up') ORDER BY plugin_key COLLATE "C";
SELECT id AS made FROM envrt.plugins WHERE plugin_key = 'envrt.recorder' \gset
SELECT count(*) = count(DISTINCT id) AS distinct, bool_and(package_path IS NULL) AS no_paths FROM envrt.plugins;
SELECT plugin_key, status, installed, state FROM envrt.stat_plugins WHERE plugin_key IN ('envrt.recorder', 'gone', '../up') ORDER BY plugin_key COLLATE "C";
-- again: no other row, and an id that does not depend on when the row was made
SELECT count(*) = (SELECT count(*) FROM envrt.plugins) AS same FROM envrt_reload_plugins();
DELETE FROM envrt.plugins;
SELECT count(*) > 0 AS some, bool_or(id = :'made') AS same_id FROM envrt_reload_plugins();
BEGIN;
DELETE FROM envrt.plugins;
SELECT count(*) > 0 AS some FROM envrt_reload_plugins();
ROLLBACK;

-- workers
SELECT envrt_restart_plugin('envrt.recorder');
SELECT attempt(format('SELECT envrt_restart_plugin(%L)', k)) LIKE '42704: %' AS refused
FROM unnest(ARRAY['nobody', '', '../recorder', '/bin/true', 'envrt.recorder/../recorder']) k;
SELECT attempt('SELECT envrt_restart_plugin(NULL)');
SELECT count(*) >= 0 AS metrics FROM envrt.stat_plugin_metrics;
BEGIN TRANSACTION READ ONLY;
SELECT attempt('SELECT envrt_reload_plugins()');
ROLLBACK;

-- rights
CREATE ROLE regress_envrt_plugins;
GRANT USAGE ON SCHEMA envrt TO regress_envrt_plugins;
SET ROLE regress_envrt_plugins;
SELECT attempt('SELECT * FROM envrt_plugins()');
SELECT attempt('SELECT * FROM envrt_reload_plugins()');
SELECT attempt('SELECT envrt_restart_plugin(''envrt.recorder'')');
SELECT attempt('SELECT * FROM envrt.stat_plugins');
SELECT attempt('SELECT * FROM envrt.stat_plugin_metrics');
SELECT attempt('SET envrt.plugin_path = ''/tmp''');
RESET ROLE;
GRANT pg_monitor TO regress_envrt_plugins;
SET ROLE regress_envrt_plugins;
SELECT count(*) > 0 AS seen FROM envrt.stat_plugins;
SELECT count(*) >= 0 AS seen FROM envrt.stat_plugin_metrics;
SELECT attempt('SELECT * FROM envrt_reload_plugins()');
SELECT attempt('SELECT envrt_restart_plugin(''envrt.recorder'')');
RESET ROLE;
GRANT EXECUTE ON FUNCTION envrt_reload_plugins(), envrt_restart_plugin(text) TO regress_envrt_plugins;
SET ROLE regress_envrt_plugins;
SELECT attempt('SELECT * FROM envrt_reload_plugins()');
SELECT attempt('SELECT envrt_restart_plugin(''envrt.recorder'')');
RESET ROLE;
GRANT SELECT ON envrt.plugins TO regress_envrt_plugins;
SET ROLE regress_envrt_plugins;
SELECT attempt('SELECT * FROM envrt_reload_plugins()');
SELECT attempt('UPDATE envrt.plugins SET status = ''disabled''');
RESET ROLE;
-- row-level security
ALTER TABLE envrt.plugins ENABLE ROW LEVEL SECURITY;
CREATE POLICY one ON envrt.plugins FOR SELECT USING (plugin_key = 'envrt.journal');
SET ROLE regress_envrt_plugins;
SELECT plugin_key FROM envrt_reload_plugins();
RESET ROLE;
DROP POLICY one ON envrt.plugins;
ALTER TABLE envrt.plugins DISABLE ROW LEVEL SECURITY;
DROP OWNED BY regress_envrt_plugins;
DROP ROLE regress_envrt_plugins;
DELETE FROM envrt.plugins;
