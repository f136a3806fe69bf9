# What a command is given over ssh, env and stdin, is nowhere to be found afterwards, whatever the remote
# shell does with it: not in the log, the messages, the ledger, what others see of the session, or the WAL.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use IPC::Run ();
use Test::More;
use EnvrtFixture qw(slurp spew temporary_directory);
use EnvrtOtherSshd;
use EnvrtTest;

plan skip_all => 'no bubblewrap' if !EnvrtOtherSshd::is_available('openssh');

# The least that is hidden is eight bytes in a row; what is looked for is longer, and no other text's.
my $part = 12;
my $serial = 0;

sub random_text
{
	open my $random, '<:raw', '/dev/urandom' or die "can't read: $!";
	sysread $random, my $bytes, 24;
	return unpack 'H*', $bytes;
}

my %secret = map { $_ => random_text() } qw(reference quoted input);
$secret{quoted} = "it's \"$secret{quoted}\" \$HOME `id`";
$secret{input} = "first line\n$secret{input}\nlast line";

my $base = temporary_directory();
spew("$base/$_", $secret{$_}) for keys %secret;

my $node = new_cluster('ssh_secrets', conf => <<'END');
envrt.ssh_connect_timeout = '3 s'
log_statement = all
log_min_messages = debug1
log_error_verbosity = verbose
END

sub sql
{
	return $node->safe_psql('postgres', $_[0]);
}

my $company = make_company($node);
my $run = make_run($node, $company);
# The user's login shell is one that first does what a test says.
my $shell = "$base/shell";
my $mode = "$base/mode";
spew($mode, '');
spew($shell, qq(#!/bin/bash\n. '$mode'\nexec /bin/bash "\$@"\n), 0755);
my $sshd = EnvrtOtherSshd->new('openssh', shell => $shell)->start;
my $environment = make_ssh_environment($node, $company, $sshd, remoteWorkspacePath => "$sshd->{directory}/home/w");
my $lease = acquire($node, $company, $environment, $run)->{id};

# None of them is in a statement: two are sealed secrets, the third one is read from a file.
my $key = sql('SELECT envrt_sealing_key()');

sub reference
{
	my ($name) = @_;

	IPC::Run::run([ "$FindBin::RealBin/../../envrt-seal", "--key=$key", "--company=$company", "--name=$name", "$base/$name" ], '>', \my $sealed)
	  or die 'envrt-seal failed';
	chomp $sealed;
	return { type => 'secret_ref', secretId => sql("SELECT envrt_create_sealed_secret('$company', '$name', '$sealed')"), version => 'latest' };
}

# A row of a started execution has its stdin until it begins, and so has the WAL; a reference is one there, too.
my $arguments = "'$lease', 'sh', ARRAY['-c', 'cat >/dev/null; exit 3'], env => '" . to_json({ TOKEN => reference('reference'), QUOTED => reference('quoted') }) . "'";
my $input = "stdin => pg_read_file('$base/input')";

# What anybody sees of the sessions, again and again.
my $samples = "$base/samples";
my $sampler = EnvrtFixture::spawn(
	sub {
		open STDIN, '-|', 'sh', '-c', q(while echo 'SELECT * FROM pg_stat_activity; SELECT * FROM envrt.stat_calls;'; do sleep 0.2; done 2>/dev/null);
		open STDOUT, '>>', $samples;
		open STDERR, '>>', $samples;
		exec EnvrtFixture::bound_to_us('psql', '-XAtq', '-d', $node->connstr('postgres'));
	});

#######################################################################
# The shells
#######################################################################

# One that takes the place of the sh that says it is ready, and has what comes then.
sub bad_sh
{
	my ($words) = @_;
	my $bin = "$base/bin" . ++$serial;

	mkdir $bin;
	spew("$bin/sh", qq(#!/bin/bash\nm=\${!#}\necho "\$m ready 2" >&2; echo "\$m ready 1"\n$words\n), 0755);
	return "export PATH=$bin:\$PATH";
}

my $said = '';

for my $shell (
	[ 'eats a line', 'read -t 0.2 line' ],
	[ 'prints its input', 'timeout 0.5 cat >&2' ],
	[ 'is nothing but that', 'exec cat' ],
	[ 'traces', 'set -x; export SHELLOPTS' ],
	[ 'traces to its output', 'set -x; export BASH_XTRACEFD=1 PS4="\$TOKEN \$QUOTED " SHELLOPTS' ],
	[ 'makes one stream of two', 'exec 2>&1' ],
	[ 'prints junk', 'echo junk; head -c 3000 /dev/urandom >&2; printf "\\\\033[2J no line"' ],
	[ 'ends', 'echo "Closed for today." >&2; exit 4' ],
	[ 'sleeps', 'sleep 100' ],
	[ 'keeps its input', 'cat >/dev/null' ],
	[ 'echoes like a terminal', 'stty echo 2>&1; cat & ' ],
	[ 'exports what it reads', 'export BASH_ENV=/dev/stdin ENV=/dev/stdin' ],
	[ 'has a sh that prints what it reads', bad_sh('IFS= read -r line; echo "got: $line" >&2; exit 5'), 'hides' ],
	[ 'has a sh that folds it', bad_sh('cat | fold -w 20 >&2 & sleep 0.3; kill $!; exit 5') ],
	[ 'has a sh that traces it', bad_sh('IFS= read -r line; set -x; eval "exit 5 $line"'), 'hides' ],
	[ 'has a sh that prints all of it', bad_sh('timeout 0.5 cat >&2; exit 5'), 'hides' ],
	[ 'has a sh that prints it to the other stream', bad_sh('timeout 0.5 cat; exit 5') ],
	[ 'has a sh that has it in an error', bad_sh('IFS= read -r line; cd "$line"; "$line"; exit 5'), 'hides' ])
{
	my ($what, $words, $hides) = @$shell;
	my ($started, $state, $text);

	spew($mode, "$words\n");
	$started = sql("SELECT envrt_start_execution($arguments)");
	($state, $text) = sql_state($node, "SELECT exit_code FROM envrt_execute($arguments, $input)");
	$said .= $text;
	ok($state ne '00000' || $text eq '3', "one that $what: right or an error") or diag("$state: $text");
	like($text, qr/\*{8}/, '... which has asterisks') if $hides;
	wait_until_sql($node, "SELECT state NOT IN ('queued', 'running') FROM envrt.executions WHERE id = '$started'", '... an execution ends');
	$said .= (sql_state($node, "SELECT envrt_await_execution('$started')"))[1];
	$said .= $node->safe_psql('postgres', "SELECT to_jsonb(p) FROM envrt_probe('$environment') p") if $hides;
}
spew($mode, '');
is(sql("SELECT exit_code FROM envrt_execute($arguments, $input)"), '3', 'none of them has harmed the others');
EnvrtFixture::end_process($sampler);

#######################################################################
# The search
#######################################################################
my $canary = random_text();

# What is looked for would be found.
sql("DO \$\$ BEGIN RAISE LOG '%', pg_read_file('$base/canary'); END \$\$; SELECT pg_logical_emit_message(false, 'canary', pg_read_file('$base/canary'))")
  if spew("$base/canary", $canary) || 1;
my $ledger = sql('SELECT to_jsonb(e)::text FROM envrt.executions e UNION ALL SELECT to_jsonb(o)::text FROM envrt.execution_output o '
	  . 'UNION ALL SELECT encode(data, \'escape\') FROM envrt.execution_output UNION ALL SELECT to_jsonb(l)::text FROM envrt.environment_leases l UNION ALL SELECT to_jsonb(f)::text FROM envrt.stat_failures f');
sql('CHECKPOINT');
my $wal = join '', map { slurp($_) } grep { -f } glob $node->data_dir . '/pg_wal/*';
my %place = (
	'the log' => slurp($node->logfile),
	messages => $said,
	'the ledger' => $ledger,
	'what others see' => slurp($samples),
	'the WAL' => $wal);

sub places_of
{
	my ($text) = @_;

	return join ', ', grep { index($place{$_}, $text) >= 0 } sort keys %place;
}

is(places_of($canary), 'the WAL, the log', 'what is there is found');
like($place{'what others see'}, qr/envrt_execute/, '... and the sessions were seen');
like($place{messages}, qr/ERROR/, '... and there were messages');
for my $name (sort keys %secret)
{
	my ($text) = $secret{$name} =~ /([0-9a-f]{48})/;
	my %found;

	$found{ places_of(substr $text, $_, $part) } = 1 for 0 .. length($text) - $part;
	is(join('', keys %found), '', "$name: no part of it is anywhere");
}
done_testing();
