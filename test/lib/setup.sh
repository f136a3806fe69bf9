# What test/all, test/demo, test/psql and test/bench/run share; sourced by them, plain bash.
#
# From a fresh clone on a bare Debian it makes everything that is needed: packages, and a copy of
# the tree that is built and installed.  Everything that runs afterwards runs as a normal user
# (postgres, when root calls) in that copy, inside of one temporary directory with sockets and
# temporary files of its own, so that nothing depends on what else is installed or running, and a
# path with spaces in it is nobody's problem.  At the end, whatever the end is, every process that
# lives in that directory is ended and the directory is removed.
#
#   setup_packages PACKAGE...   installs what is missing of the usual packages and these
#   node_packages               what to name for node and npm, if they are missing
#   setup_tree [MAKE-ARGUMENT]  copies, builds, installs
#   run_inside SCRIPT [ARG]     runs a script of the copy as the normal user; its status is ours
#   run_on_terminal SCRIPT      the same for something interactive

set -euo pipefail
umask 022

envrt_root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)
envrt_pg_bin=/usr/lib/postgresql/15/bin
envrt_packages=(
	make gcc libc6-dev perl libipc-run-perl python3 curl util-linux
	postgresql-15 postgresql-server-dev-15
	libssh-dev libsodium-dev libuv1-dev libjansson-dev libssl-dev libseccomp-dev libarchive-dev bubblewrap busybox
	openssh-server openssh-client dropbear-bin tinysshd socat
)
envrt_work=
envrt_inner=
envrt_policy=
envrt_saved_conf=
envrt_as_user=()

# What belongs to another server, another make or another language must not reach ours.
unset "${!PG@}" MAKEFLAGS MAKELEVEL MFLAGS MAKEOVERRIDES CDPATH BASH_ENV ENV PERL5LIB PERL5OPT LANGUAGE
unset SSH_AUTH_SOCK PAPERCLIP_RUNTIME_API_CANDIDATES_JSON
export LC_ALL=C.UTF-8

say()
{
	printf '== %s\n' "$*"
}

die()
{
	printf '%s\n' "$*" >&2
	exit 1
}

as_root()
{
	if [ "$(id -u)" = 0 ]; then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo -- "$@"
	else
		die "This needs root: run it as root or install sudo."
	fi
}

# As a user whom initdb accepts, and not longer than this shell lives.
as_user()
{
	"${envrt_as_user[@]}" "$@"
}

# ---------------------------------------------------------------------------------------------
# The end
# ---------------------------------------------------------------------------------------------

# Pids of what lives in the temporary directory: by working directory (a server's is its data
# directory) or by environment.  Not this shell and its children that ask.
pids_inside()
{
	local dir pid cwd

	for dir in /proc/[0-9]*; do
		pid=${dir#/proc/}
		[ "$pid" != $$ ] && [ "$pid" != "$BASHPID" ] || continue
		cwd=$(readlink "$dir/cwd" 2>/dev/null) || continue
		case $cwd in
			"$envrt_work" | "$envrt_work"/*)
				printf '%s\n' "$pid"
				continue
				;;
		esac
		if { tr '\0' '\n' <"$dir/environ" | grep -qxF "ENVRT_WORK=$envrt_work"; } 2>/dev/null; then
			printf '%s\n' "$pid"
		fi
	done
}

end_everything_inside()
{
	local pids round

	# Most end by themselves, the inner script first: give them time to do it in order.
	for round in $(seq 1 200); do
		pids=$(pids_inside)
		[ -n "$pids" ] || return 0
		case $round in
			1) kill -TERM $pids 2>/dev/null || true ;;
			100) kill -INT $pids 2>/dev/null || true ;;
			150) kill -QUIT $pids 2>/dev/null || true ;;
			18?) kill -KILL $pids 2>/dev/null || true ;;
		esac
		sleep 0.1
	done
}

restore_machine()
{
	if [ -n "$envrt_saved_conf" ]; then
		as_root mv -f "$envrt_saved_conf" /etc/postgresql-common/createcluster.conf
		envrt_saved_conf=
	fi
	if [ -n "$envrt_policy" ]; then
		as_root rm -f "$envrt_policy"
		envrt_policy=
	fi
}

finish()
{
	local status=$?

	trap '' INT TERM HUP
	set +e
	restore_machine
	if [ -n "$envrt_work" ]; then
		end_everything_inside
		rm -rf "$envrt_work"
		# What `make install` as root left in the copy, a user can't remove.
		[ ! -e "$envrt_work" ] || as_root rm -rf "$envrt_work"
	fi
	exit "$status"
}
trap finish EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# ---------------------------------------------------------------------------------------------
# Packages
# ---------------------------------------------------------------------------------------------

is_installed()
{
	[ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

apt_install()
{
	# A terminal or the standard input is not asked anything.
	as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends \
		-o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 install "$@" </dev/null
}

apt_install_or_update()
{
	# The package lists may be missing (a fresh system) or too old: only then fetch them.
	if apt-get -s --no-install-recommends install "$@" >/dev/null 2>&1 && apt_install "$@"; then
		return
	fi
	as_root apt-get -qq update
	apt_install "$@"
}

# Node and npm, for plugins, as packages to install: who has them from elsewhere could not have Debian's
# besides.
node_packages()
{
	command -v node >/dev/null && command -v npm >/dev/null || echo nodejs npm
}

setup_packages()
{
	local package conf=/etc/postgresql-common/createcluster.conf
	local missing=()

	command -v apt-get >/dev/null || die "This needs Debian 12: no apt-get found."
	for package in "${envrt_packages[@]}" "$@"; do
		is_installed "$package" || missing+=("$package")
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	say "installing ${missing[*]}"

	# No package may start a service now, unless the administrator has a policy already.
	if [ ! -e /usr/sbin/policy-rc.d ]; then
		envrt_policy=/usr/sbin/policy-rc.d
		as_root sh -c "printf '#!/bin/sh\nexit 101\n' >$envrt_policy && chmod 755 $envrt_policy"
	fi
	# Nor may the server's package make a cluster: the setting is in a package of its own.
	if ! is_installed postgresql-15; then
		is_installed postgresql-common || apt_install_or_update postgresql-common
		as_root cp -p "$conf" "$conf.envrt-saved"
		envrt_saved_conf=$conf.envrt-saved
		as_root sh -c "echo 'create_main_cluster = off' >>$conf"
	fi
	apt_install_or_update "${missing[@]}"
	restore_machine
}

# ---------------------------------------------------------------------------------------------
# The copy
# ---------------------------------------------------------------------------------------------

setup_work()
{
	local base=${TMPDIR:-/tmp}

	# Sockets have short names at most, and both users must get there.
	if [ "$(id -u)" = 0 ] || [ ${#base} -gt 40 ] || [[ $base == *[!A-Za-z0-9/._-]* ]]; then
		base=/tmp
	fi
	envrt_work=$(mktemp -d "$base/envrt-XXXXXX")
	mkdir "$envrt_work/tree" "$envrt_work/home" "$envrt_work/tmp"
	envrt_as_user=(setpriv --pdeathsig TERM -- env HOME="$envrt_work/home")
	if [ "$(id -u)" = 0 ]; then
		envrt_as_user=(setpriv --pdeathsig TERM --reuid=postgres --regid=postgres --init-groups --
			env HOME="$envrt_work/home")
	fi
	export ENVRT_WORK=$envrt_work TMPDIR=$envrt_work/tmp
	export PG_CONFIG=$envrt_pg_bin/pg_config PATH=$envrt_pg_bin:$PATH
}

# Runs quietly; what was said is shown when it fails.
quietly()
{
	if ! "$@" >"$envrt_work/log" 2>&1; then
		cat "$envrt_work/log" >&2
		die "Failed: $*"
	fi
}

# For the current user, whose directory it may have to be given to.
in_tree()
{
	(cd "$envrt_work/tree" && "$@")
}

setup_tree()
{
	local targets=(all)

	setup_work
	say "building"
	tar -C "$envrt_root" --exclude-vcs --exclude=./build --exclude=./tmp_check --exclude='*.o' \
		--exclude='*.so' --exclude=./envrt_driver_host --exclude=./envrt_files -cf - . | tar -C "$envrt_work/tree" -xf -
	if [ "$(id -u)" = 0 ]; then
		chown -R postgres:postgres "$envrt_work"
	fi
	quietly in_tree as_user make -s -j"$(nproc)" PG_CONFIG="$PG_CONFIG" "${targets[@]}" "$@"
	quietly in_tree as_root make -s PG_CONFIG="$PG_CONFIG" install
}

# In the background, because a shell that waits for a program in the foreground is deaf to signals;
# and without a function between, which would be one more shell.
run_inside()
{
	local status=0

	cd "$envrt_work/tree"
	"${envrt_as_user[@]}" bash "$@" </dev/null &
	envrt_inner=$!
	wait "$envrt_inner" || status=$?
	envrt_inner=
	return "$status"
}

run_on_terminal()
{
	cd "$envrt_work/tree"
	# Ctrl-C is for the program.
	trap : INT
	as_user bash "$@"
}
