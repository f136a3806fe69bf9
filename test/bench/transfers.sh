# What transfers of files cost over ssh, next to rsync -a over the same sshd; sourced by bench.sh, after
# the leases that commands.sh has made.
#
#   measure_transfers   seconds, of trees in turn: many small files, a large one, a node_modules
#
# BENCH_FILES (30000) is the number of the small files, BENCH_LARGE_MB (1024) the size of the large one.

transfer_files=${BENCH_FILES:-30000}
transfer_large_mb=${BENCH_LARGE_MB:-1024}

seconds_of()
{
	local start end

	start=$(date +%s%N)
	"$@" >"$bench/transfer.log" 2>&1 || { cat "$bench/transfer.log" >&2; die "A transfer failed."; }
	end=$(date +%s%N)
	awk -v ns=$((end - start)) 'BEGIN { printf "%.2f", ns / 1e9 }'
}

rsync_over_ssh()
{
	rsync -a -e "ssh -p $ENVRT_TEST_SSH_PORT -l $ENVRT_TEST_SSH_USER -i $ENVRT_TEST_SSH_DIR/user_ed25519 \
-o UserKnownHostsFile=$ENVRT_TEST_SSH_DIR/known_hosts -o BatchMode=yes -F none" "$@"
}

# Both have a session of their own to set up; ours is pooled.
transfer_row()
{
	local what=$1 function=$2 local_path=$3 remote=$4 rsync envrt

	if [ "$function" = push ]; then
		rsync=$(seconds_of rsync_over_ssh "$local_path/" "$ENVRT_TEST_SSH_HOST:$transfer_far/rsync/$remote/")
	else
		rsync=$(seconds_of rsync_over_ssh "$ENVRT_TEST_SSH_HOST:$transfer_far/envrt/$remote/" "$local_path.rsync/")
	fi
	envrt=$(seconds_of sql -c "SELECT * FROM envrt_${function}_files('$transfer_lease', '$local_path', 'envrt/$remote')")
	printf '%-48s %8s %8s %6s\n' "$what" "$envrt" "$rsync" "$(ratio "$envrt" "$rsync")"
}

# Ten files in each directory.
make_small_files()
{
	perl -e 'my ($base, $count) = @ARGV; for my $n (0 .. $count - 1) {
		my ($d, $e) = (int($n / 500), int($n / 10) % 50);
		mkdir "$base/d$d" if $n % 500 == 0; mkdir "$base/d$d/e$e" if $n % 10 == 0;
		open my $file, ">", "$base/d$d/e$e/f$n" or die; print $file "file $n\n" x ($n % 60 + 1); close $file }' "$1" "$transfer_files"
}

# A real project's, where there is a registry; else a tree of the same shape.
make_node_modules()
{
	if command -v npm >/dev/null && (cd "$1" && timeout 120 npm install --silent --no-audit --no-fund --ignore-scripts express typescript eslint) \
		>"$bench/npm.log" 2>&1; then
		node_modules="node_modules of express, typescript, eslint"
		return
	fi
	node_modules="a tree like a node_modules"
	perl -e 'my ($base) = @ARGV; mkdir "$base/node_modules"; for my $p (1 .. 150) { my $d = "$base/node_modules/package-$p"; mkdir $d; mkdir "$d/lib";
		for my $f (1 .. 25) { open my $file, ">", "$d/lib/m$f.js" or die; print $file "exports.f$f = $p;\n" x ($f * $f); close $file } }' "$1"
}

age()
{
	find "$1" -exec touch -h -d '2 hours ago' {} +
}

measure_transfers()
{
	local source=$bench/transfers changed

	transfer_far=$ENVRT_WORK/home/workspace
	transfer_lease=$(sql -c "SELECT lease FROM command_leases WHERE kind = 'ssh'")
	mkdir -p "$source/small" "$source/large" "$source/project" "$transfer_far/rsync" "$transfer_far/envrt"
	make_small_files "$source/small"
	head -c "${transfer_large_mb}M" /dev/urandom >"$source/large/file"
	make_node_modules "$source/project"
	age "$source"
	printf '\nfiles over ssh, seconds (one turn each; rsync -a over the same sshd)\n\n'
	printf '%-48s %8s %8s %6s\n' "" envrt rsync ratio
	transfer_row "push: $transfer_files small files" push "$source/small" small
	transfer_row "push: the same again" push "$source/small" small
	changed=$(find "$source/small" -type f | head -n 1)
	echo changed >>"$changed"
	transfer_row "push: one of them has changed" push "$source/small" small
	transfer_row "push: one file of $transfer_large_mb MB" push "$source/large" large
	transfer_row "push: the same again" push "$source/large" large
	transfer_row "push: $node_modules" push "$source/project" project
	transfer_row "push: the same again" push "$source/project" project
	transfer_row "pull: $transfer_files small files" pull "$source/pulled-small" small
	transfer_row "pull: the same again" pull "$source/pulled-small" small
	transfer_row "pull: one file of $transfer_large_mb MB" pull "$source/pulled-large" large
	transfer_row "pull: $node_modules" pull "$source/pulled-project" project
	rm -rf "$source" "$transfer_far/rsync" "$transfer_far/envrt"
}
