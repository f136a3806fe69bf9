# Files between the server and leases, from SQL: large ones and many, cancelled half-way, with which rights,
# and what they cost the driver host.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use Test::More;
use Time::HiRes qw(time);
use EnvrtFixture qw(spew endless_file);
use EnvrtSession;
use EnvrtTest;

my $sandboxes = temporary_directory();
my $sshd = EnvrtFixture::Sshd->new->start;
my $node = new_cluster('files',
	conf => "envrt.sandbox_directory = '$sandboxes'\nenvrt.sandbox_on_data_filesystem = on\n");
my $company = make_company($node);
my $run = make_run($node, $company);
my %environment = (ssh => make_ssh_environment($node, $company, $sshd));
my %workspace;
my %lease;
my $base = temporary_directory();

$environment{sandbox} = make_environment($node, $company, 'sandbox', { provider => 'bubblewrap' }) if has_sandboxes();
$lease{$_} = acquire($node, $company, $environment{$_}, $run)->{id} for sort keys %environment;
$workspace{ssh} = "$sshd->{directory}/workspace";
$workspace{sandbox} = "$sandboxes/leases/$lease{sandbox}/workspace" if has_sandboxes();

sub files
{
	my ($function, $lease, @paths) = @_;
	my $start = time;
	my $result = $node->safe_psql('postgres', "SELECT * FROM envrt_$function('$lease', " . join(', ', map { literal($_) } @paths) . ')');

	note sprintf '%s of %s: %.1f s', $function, $paths[-1], time - $start;
	return $result;
}

# Whether two directories are equal: names, kinds, permissions, targets of links, and contents.
sub same
{
	my ($one, $other, $name) = @_;
	my $list = q{find . -mindepth 1 ! -type l -printf '%P %y %m\n' -o -type l -printf '%P %y %l\n' | LC_ALL=C sort};

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $start = time;
	is(`diff -rq --no-dereference '$one' '$other' 2>&1; (cd '$one' && $list) >'$base/list1'; (cd '$other' && $list) >'$base/list2'; diff '$base/list1' '$base/list2' 2>&1 | head`,
		'', $name);
	note sprintf 'compared in %.1f s', time - $start;
	return;
}

sub listing
{
	my ($directory) = @_;

	return join ' ', sort map { s{^\Q$directory\E/}{}r } split /\n/, `find '$directory' -mindepth 1`;
}

# The driver host's memory: now, and at most since reset_peak.
sub memory
{
	my ($what) = @_;
	my $pid = $node->safe_psql('postgres', 'SELECT pid FROM envrt.stat_driver_host');
	my ($kb) = PostgreSQL::Test::Utils::slurp_file("/proc/$pid/status") =~ /^$what:\s+(\d+) kB/m;

	return $kb / 1024;
}

#######################################################################
# A large file, and many small ones
#######################################################################

# A gigabyte; over ssh a quarter of it, unless ENVRT_LARGE_FILES is set: that is the slower way.
my %megabytes = (sandbox => 1024, ssh => $ENV{ENVRT_LARGE_FILES} ? 1024 : 256);

# Every 64 kB of it begins with its number; the rest is cheap to keep.
sub make_large
{
	my ($megabytes) = @_;

	mkdir "$base/large";
	open my $file, '>', "$base/large/file" or die;
	truncate $file, $megabytes * 16 * 65536;
	for (1 .. $megabytes * 16)
	{
		seek $file, ($_ - 1) * 65536, 0;
		printf $file '%016d', $_;
	}
	close $file;
	return;
}

my $bytes = 0;
mkdir "$base/many";
for my $d (1 .. 500)
{
	mkdir "$base/many/d$d";
	for my $f (1 .. 100)
	{
		open my $file, '>', "$base/many/d$d/f$f" or die;
		print $file "$d $f\n";
		$bytes += length "$d $f\n";
		close $file;
	}
	symlink "f$d", "$base/many/d$d/link";
	# What is writable for others does not come back as that.
	chmod 0600 | $d & 055, "$base/many/d$d/f1";
}

for my $driver (sort keys %lease)
{
	# Warm, with its buffers.
	spew("$base/one", 'x');
	files('push_files', $lease{$driver}, "$base/one");
	unlink "$workspace{$driver}/one";
	my $before = memory('VmRSS');

	make_large($megabytes{$driver});
	for my $what (qw(large many))
	{
		my $count = $what eq 'large' ? '1|' . $megabytes{$driver} * 1024**2 : '50500|' . $bytes;

		is(files('push_files', $lease{$driver}, "$base/$what", $what), $count, "$driver: push of $what");
		is(files('pull_files', $lease{$driver}, "$base/pulled", $what), $count, "$driver: pull of $what");
		same("$base/$what", "$base/pulled", '... what comes back is equal');
		system 'rm', '-rf', "$base/pulled", "$workspace{$driver}/$what";
		note sprintf '%s, %s: driver host %.1f MB, at most %.1f MB', $driver, $what, memory('VmRSS'), memory('VmHWM');
	}
	# The most it ever was since its start.
	my $peak = memory('VmHWM');
	cmp_ok($peak - $before, '<', 32, "$driver: the driver host took less than 32 MB for it") or diag "$before MB before, at most $peak MB";
	note sprintf '%s: driver host %.1f MB before, at most %.1f MB', $driver, $before, $peak;
	is(listing($workspace{$driver}), '', '... and nothing else is left in the workspace');
}


#######################################################################
# Cancelled half-way
#######################################################################

endless_file("$base/endless");
for my $driver (sort keys %lease)
{
	my ($code) = sql_state($node, "SET statement_timeout = '1 s'; SELECT envrt_push_files('$lease{$driver}', '$base/endless')");
	is($code, '57014', "$driver: a push that is cancelled");
	wait_until_sql($node, 'SELECT count(*) = 0 FROM envrt.stat_transfers', 'the transfer to be over');
	ok(eval { wait_until('it is gone', sub { listing($workspace{$driver}) eq '' }); 1 }, '... leaves no half file')
	  or diag listing($workspace{$driver});
	endless_file("$workspace{$driver}/endless");
	mkdir "$base/into";
	my $session = EnvrtSession->new($node);
	$session->start("SELECT envrt_pull_files('$lease{$driver}', '$base/into')");
	wait_until_sql($node, "SELECT count(*) = 1 FROM envrt.stat_transfers WHERE bytes > 1000000 AND direction = 'pull' AND lease_id = '$lease{$driver}' AND since < now()", 'progress in the view');
	$node->safe_psql('postgres', "SELECT pg_terminate_backend(pid) FROM envrt.stat_transfers");
	wait_until_sql($node, 'SELECT count(*) = 0 FROM envrt.stat_transfers', 'the transfer to be over');
	is(listing("$base/into"), '', "$driver: a pull whose session is ended leaves no half file");
	$node->safe_psql('postgres', "ALTER SYSTEM SET envrt.max_pull = '1 MB'");
	$node->safe_psql('postgres', 'SELECT pg_reload_conf()');
	wait_until_sql($node, "SELECT current_setting('envrt.max_pull') = '1MB'", 'the setting');
	is((sql_state($node, "SELECT envrt_pull_files('$lease{$driver}', '$base/into')"))[0], '53400', "$driver: a pull of more than envrt.max_pull");
	is(listing("$base/into"), '', '... leaves no half file either');
	$node->safe_psql('postgres', 'ALTER SYSTEM RESET envrt.max_pull');
	$node->safe_psql('postgres', 'SELECT pg_reload_conf()');
	unlink "$workspace{$driver}/endless";
}

#######################################################################
# Rights, and what is the server's own
#######################################################################

$node->safe_psql('postgres', q{
	CREATE ROLE app LOGIN; GRANT USAGE ON SCHEMA envrt TO app;
	GRANT SELECT ON envrt.companies, envrt.environments, envrt.heartbeat_runs, envrt.environment_leases TO app;
	GRANT EXECUTE ON FUNCTION envrt_push_files, envrt_pull_files TO app});
spew("$base/one", 'x');
for my $driver (sort keys %lease)
{
	my @as_app = (psql => { extra_params => [ '-U', 'app' ] });
	my $lease = $lease{$driver};
	my $push = "SELECT envrt_push_files('$lease', '$base/one')";
	my $pull = "SELECT envrt_pull_files('$lease', '$base/two', 'one')";

	is((sql_state($node, $push, @as_app))[0], '42501', "$driver: a push without the right");
	is((sql_state($node, $pull, @as_app))[0], '42501', "$driver: a pull without the right");
	$node->safe_psql('postgres', 'GRANT pg_read_server_files TO app');
	is((sql_state($node, $push, @as_app))[0], '00000', "$driver: a push with it");
	is((sql_state($node, $pull, @as_app))[0], '42501', "$driver: which is not that to pull");
	$node->safe_psql('postgres', 'GRANT pg_write_server_files TO app');
	is((sql_state($node, $pull, @as_app))[0], '00000', "$driver: a pull with it");
	$node->safe_psql('postgres', 'REVOKE pg_read_server_files, pg_write_server_files FROM app');

	my $data = $node->data_dir;
	symlink $data, "$base/alias";
	for my $path ($data, "$data/pg_envrt", "$data/postgresql.conf", "$base/alias/global", $sandboxes)
	{
		my ($code, $text) = sql_state($node, "SELECT envrt_push_files('$lease', '$path')");

		is($code, '42501', "$driver: no push of $path");
		like($text, $path =~ /alias/ ? qr/leads through the link "alias"/ : qr/belongs to the server itself/, '... which says why');
	}
	for my $path ("$data/new", "$data/pg_envrt", "$base/alias/global/1")
	{
		is((sql_state($node, "SELECT envrt_pull_files('$lease', '$path')"))[0], '42501', "$driver: no pull to $path");
	}
	chmod 0500, "$base/closed" if mkdir "$base/closed";
	my ($code, $text) = sql_state($node, "SELECT envrt_pull_files('$lease', '$base/closed/new')");
	is($code, '42501', "$driver: no pull to where the server can't write");
	like($text, qr/could not make "\Q$base\E\/closed\/new": Permission denied/, '... which says why');
	is((sql_state($node, "SELECT envrt_push_files('$lease', '$base/one', '../x')"))[0], '22023', "$driver: a remote path that leads out");
	is((sql_state($node, "SELECT envrt_push_files('$lease', '$base/none')"))[0], '58P01', "$driver: a file that is not there");
	($code, $text) = sql_state($node, "SELECT envrt_pull_files('$lease', '$base/two', 'none')");
	is($code, '58P01', "$driver: nor there");
	like($text, qr{DETAIL:  In the workspace, at "none"\.}, '... which says where');
}

done_testing();
