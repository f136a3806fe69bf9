# A throwaway server and the fixtures; sourced by scripts that setup.sh runs as a normal user in the
# copy of the tree.  The server listens on a socket in a private directory and nowhere else.
#
#   fixture_start               sets ENVRT_TEST_SSH_* and ENVRT_TEST_API
#   server_start [SETTING]...   sets PGHOST, PGPORT, PGUSER, PGDATABASE
#   server_stop
#
# Both end with the script, whatever ends it, and are in sessions of their own, so that Ctrl-C on a
# terminal is the script's business alone.

set -euo pipefail

server_pid=
fixture_pid=

die()
{
	printf '%s\n' "$*" >&2
	exit 1
}

fixture_start()
{
	local directory=$ENVRT_WORK/fixture

	mkdir -p "$directory"
	setpriv --pdeathsig TERM -- setsid perl test/lib/fixture "$directory" </dev/null >"$directory.log" 2>&1 &
	fixture_pid=$!
	until [ -e "$directory/environment" ]; do
		kill -0 "$fixture_pid" 2>/dev/null || {
			cat "$directory.log" >&2
			die "The fixtures did not start."
		}
		sleep 0.05
	done
	. "$directory/environment"
}

fixture_stop()
{
	[ -n "$fixture_pid" ] || return 0
	kill -TERM "$fixture_pid" 2>/dev/null || true
	wait "$fixture_pid" || true
	fixture_pid=
}

# Settings are lines of postgresql.conf; those given last win.
server_start()
{
	local data=$ENVRT_WORK/data
	local socket=$ENVRT_WORK/socket
	local setting

	mkdir -m 700 "$socket"
	initdb -D "$data" -U postgres -A trust -E UTF8 --no-locale --no-sync >"$ENVRT_WORK/initdb.log" 2>&1 || {
		cat "$ENVRT_WORK/initdb.log" >&2
		die "initdb failed."
	}
	{
		echo "listen_addresses = ''"
		echo "unix_socket_directories = '$socket'"
		echo "shared_preload_libraries = 'envrt'"
		echo "log_line_prefix = '%m [%p] %b '"
		echo "envrt.plugin_path = '$PWD/test/plugins'"
		for setting in "$@"; do
			printf '%s\n' "$setting"
		done
	} >>"$data/postgresql.conf"
	export PGHOST=$socket PGPORT=5432 PGUSER=postgres PGDATABASE=postgres
	server_log=$ENVRT_WORK/server.log
	setpriv --pdeathsig INT -- setsid postgres -D "$data" </dev/null >"$server_log" 2>&1 &
	server_pid=$!
	until pg_isready -q; do
		kill -0 "$server_pid" 2>/dev/null || {
			cat "$server_log" >&2
			die "The server did not start."
		}
		sleep 0.05
	done
}

server_stop()
{
	[ -n "$server_pid" ] || return 0
	kill -INT "$server_pid" 2>/dev/null || true
	wait "$server_pid" || true
	server_pid=
	rm -rf "$ENVRT_WORK/data" "$ENVRT_WORK/socket"
}

server_finish()
{
	local status=$?

	trap '' INT TERM HUP
	server_stop
	fixture_stop
	exit "$status"
}
trap server_finish EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
