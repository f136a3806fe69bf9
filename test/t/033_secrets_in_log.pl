# A secret that is given in a statement does not get into the log beside an error, whoever raises it; and the
# program that seals one at the client, so that it is in no statement at all.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use IPC::Run ();
use Test::More;
use EnvrtFixture qw(slurp spew temporary_directory);
use EnvrtTest;
use EnvrtProvider;
use EnvrtRecorder;
use EnvrtSession;

# All that a server can be told to log beside what it reports; what it logs of statements by themselves is not our doing.
my $node = new_cluster('secrets_in_log', conf => EnvrtProvider::conf() . <<'END');
log_statement = none
log_min_messages = notice
log_min_error_statement = notice
log_parameter_max_length_on_error = -1
log_error_verbosity = verbose
END
my $company = make_company($node);
my $plain = 'in-the-statement';
my $serial = 0;

sub sql
{
	return $node->safe_psql('postgres', $_[0]);
}

# What is in the log since the last look.
my $seen = 0;

sub logged
{
	my $log = slurp($node->logfile);
	my $new = substr $log, $seen;

	$seen = length $log;
	return $new;
}

# The statement fails; what is said about that is in the log, and the secret is not.
sub hidden
{
	my ($what, $statement, $state, %options) = @_;

	logged();
	is((sql_state($node, $statement, %options))[0], $state, "$what: fails");
	my $log = logged();
	like($log, qr/(?:ERROR|FATAL):  \Q$state\E: /, "$what: is in the log");
	unlike($log, qr/\Q$plain\E/, "$what: not with the secret");
	return;
}

my $secret = sql("SELECT envrt_create_secret('$company', 'taken', 'other')");
my $create = "SELECT envrt_create_secret('$company', 'taken', '$plain')";
my $no_such = '00000000-0000-0000-0000-000000000000';
my $ssh = to_json({ host => 'h', username => 'u', remoteWorkspacePath => '/w', privateKey => $plain });
sql(<<"SQL");
CREATE FUNCTION store(value text) RETURNS uuid LANGUAGE plpgsql AS \$\$ BEGIN RETURN envrt_create_secret('$company', 'taken', value); END \$\$;
CREATE FUNCTION store_by_text(value text) RETURNS uuid LANGUAGE plpgsql AS
\$\$ DECLARE id uuid; BEGIN EXECUTE format('SELECT envrt_create_secret(%L, %L, %L)', '$company', 'taken', value) INTO id; RETURN id; END \$\$;
CREATE ROLE app LOGIN;
GRANT USAGE ON SCHEMA envrt TO app;
SQL

# What our functions raise
hidden('a name that is taken', $create, '23505');
hidden('a rotation of nothing', "SELECT envrt_rotate_secret('$no_such', '$plain')", '42704');
hidden('an environment with a bad key', "SELECT envrt_create_environment('$company', 'e', 'ssh', '$ssh')", '22023');
hidden('a probe of one', "SELECT envrt_probe_config('$company', 'ssh', '$ssh')", '22023');
hidden('a config that is not right', "SELECT envrt_normalize_config('ssh', '{\"privateKey\": \"$plain\", \"port\": -1}')", '22023');
hidden($_, "SELECT $_('$no_such', 'true', env => '{\"V\": \"$plain\"}')", '42704') for qw(envrt_execute envrt_execute_raw envrt_start_execution);

# ... by way of statements that do not name them
hidden('in a function', "SELECT store('$plain')", '23505');
hidden('in a function that writes the statement', "SELECT store_by_text('$plain')", '23505');
hidden('prepared, as a parameter', "PREPARE p(text) AS SELECT envrt_create_secret('$company', 'taken', \$1); EXECUTE p('$plain')", '23505');

# What PostgreSQL raises inside them
{
	my $session = EnvrtSession->new($node);

	$session->run('BEGIN; LOCK TABLE envrt.company_secrets');
	hidden('a timeout', "SET statement_timeout = '100 ms'; $create", '57014');
	hidden('a lock that is not given', "SET lock_timeout = '100 ms'; SELECT store('$plain')", '55P03');
	my $waiting = EnvrtSession->new($node);
	logged();
	$waiting->start("SELECT store('$plain')");
	wait_until_sql($node, 'SELECT wait_event_type = \'Lock\' FROM pg_stat_activity WHERE pid = ' . $waiting->backend);
	sql('SELECT pg_terminate_backend(' . $waiting->backend . ')');
	$waiting->finish(60);
	wait_until('it to be in the log', sub { slurp($node->logfile) =~ /FATAL:  57P01/ });
	unlike(logged(), qr/\Q$plain\E/, 'a termination: not with the secret');
}
sql('CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE NOTICE \'noted\'; RAISE EXCEPTION \'refused\'; END $$;'
	  . 'CREATE TRIGGER refuse BEFORE INSERT ON envrt.company_secrets FOR EACH ROW EXECUTE FUNCTION refuse()');
hidden('a trigger', "SELECT envrt_create_secret('$company', 'new', '$plain')", 'P0001');
sql('DROP FUNCTION refuse CASCADE');

# What it raises before they are called, and after
hidden('no right to the function', $create, '42501', psql => { extra_params => [ '-U', 'app' ] });
{
	my $session = EnvrtSession->new($node);

	$session->run('BEGIN');
	$session->run('SELECT 1/0');
	logged();
	is($session->run($create)->{state}, '25P02', 'a transaction that has failed: fails');
	unlike(logged(), qr/\Q$plain\E/, '... not with the secret');
}
hidden('a syntax error', "$create oops oops", '42601');
hidden('an error beside it', "SELECT 1/count(NULL), envrt_create_secret('$company', 'new', '$plain') FROM pg_class", '22012');
hidden('the name written otherwise', "SELECT \"public\".ENVRT_Create_Secret('$company', 'taken', '$plain') oops oops", '42601');

# Others are logged as ever.
logged();
sql_state($node, 'SELECT 1/0 /* of somebody */');
like(logged(), qr{STATEMENT:  SELECT 1/0 /\* of somebody \*/}, 'other statements are in the log');

#######################################################################
# envrt-seal
#######################################################################

my $program = "$FindBin::RealBin/../../envrt-seal";
my $directory = temporary_directory();
my $file = "$directory/value";
my $key = sql('SELECT envrt_sealing_key()');
my @for = ("--key=$key", "--company=$company", '--name=sealed');

# (status, output, errors); the value is its standard input.
sub seal
{
	my ($value, @arguments) = @_;

	# A file, which it need not read.
	spew("$directory/input", $value);
	IPC::Run::run([ $program, @arguments ], '<', "$directory/input", '>', \my $out, '2>', \my $error);
	return ($? >> 8, $out, $error);
}

# What a provider is given as the secret's value.
my $recorder = EnvrtRecorder->new($node, $company);
my $run = make_run($node, $company);

sub value_of
{
	my ($id) = @_;

	$recorder->calls;
	acquire($node, $company, $recorder->sandbox(apiKey => { type => 'secret_ref', secretId => $id, version => 'latest' }), $run);
	return (grep { $_->[0] eq 'environmentAcquireLease' } $recorder->calls)[0][1]{config}{apiKey};
}

my ($status, $out, $error) = seal('', '--help');
is($status, 0, 'envrt-seal --help');
like($out, qr/^Usage:.*--key=KEY.*--company=UUID.*--name=NAME/ms, '... says how it is used');

# By psql, as its help and the README have it.
my $value = "-----BEGIN \"KEY\"-----\\n\tgr\xc3\xbc\xc3\x9fe 'quoted'\n\n";
spew($file, $value);
my $id = sql(<<"PSQL");
SELECT envrt_sealing_key() AS key \\gset
\\set company $company
\\set sealed `$program --key=:'key' --company=:'company' --name='deploy key' $file`
SELECT envrt_create_sealed_secret(:'company', 'deploy key', :'sealed')
PSQL
is(value_of($id), $value, 'what was sealed is what is given, to the byte');
($status, $out, $error) = seal('the second', @for[ 0, 1 ], '--name=deploy key', '--version=2');
chomp $out;
is(sql("SELECT envrt_rotate_sealed_secret('$id', '$out')"), '2', 'from standard input, for a rotation');
is(value_of($id), 'the second', '... which is the new value');
($status, $out) = seal('x', @for, '-');
chomp $out;
is((sql_state($node, "SELECT envrt_create_sealed_secret('$company', 'other', '$out')"))[0], '22023', 'it is for one name');
is(sql("SELECT envrt_create_sealed_secret('$company', 'sealed', '$out') IS NOT NULL"), 't', '... which it is good for');
isnt((seal('x', @for))[1], (seal('x', @for))[1], 'no two are alike');
(my $digits = $key) =~ s/^\\x//;
is((seal('x', "--key=$digits", @for[ 1, 2 ]))[0], 0, 'a key without its prefix');
is((seal('v' x 65536, @for))[0], 0, 'the longest');

for my $wrong (
	[ 'no key', 2, qr/--key, --company and --name must be given/, 'x', @for[ 1, 2 ] ],
	[ 'no name', 2, qr/must be given/, 'x', @for[ 0, 1 ] ],
	[ 'a short key', 2, qr/the key must be 64 hexadecimal digits/, 'x', '--key=' . substr($digits, 2), @for[ 1, 2 ] ],
	[ 'a long key', 2, qr/the key must be/, 'x', "--key=${digits}00", @for[ 1, 2 ] ],
	[ 'a key that is none', 2, qr/the key must be/, 'x', '--key=' . 'z' x 64, @for[ 1, 2 ] ],
	[ 'a key that nothing can be sealed to', 2, qr/nothing can be sealed to this key/, 'x', '--key=' . '0' x 64, @for[ 1, 2 ] ],
	[ 'a company that is none', 2, qr/the company must be a UUID/, 'x', $for[0], '--company=acme', $for[2] ],
	[ 'an empty name', 2, qr/the name must have/, 'x', @for[ 0, 1 ], '--name= ' ],
	[ 'a long name', 2, qr/the name must have from 1 to 255 bytes/, 'x', @for[ 0, 1 ], '--name=' . 'n' x 256 ],
	[ 'a version that is none', 2, qr/the version must be a number/, 'x', @for, '--version=0' ],
	[ 'a version with more', 2, qr/the version must be a number/, 'x', @for, '--version=1a' ],
	[ 'an option that is none', 2, qr/--help/, 'x', @for, '--value=x' ],
	[ 'two files', 2, qr/one file at most/, 'x', @for, $file, $file ],
	[ 'no such file', 1, qr/could not open "\/no\/such": No such file/, 'x', @for, '/no/such' ],
	[ 'a directory', 1, qr/could not read/, 'x', @for, $directory ],
	[ 'no value', 1, qr/there is no value in standard input/, '', @for ],
	[ 'too long a value', 1, qr/must not be longer than 65536 bytes/, 'v' x 65537, @for ],
	[ 'bytes that are no text', 1, qr/must be UTF-8 text/, "\xff\xfe", @for ],
	[ 'a zero byte', 1, qr/without zero bytes/, "a\0b", @for ])
{
	my ($what, $expected, $pattern, $input, @arguments) = @$wrong;

	($status, $out, $error) = seal($input, @arguments);
	is($status, $expected, "$what: its status");
	like($error, qr/^envrt-seal: .*$pattern|$pattern/s, "$what: which is said");
	is($out, '', "$what: nothing is written");
}
is(system("printf x | '$program' --key=$digits @for[ 1, 2 ] >/dev/full 2>/dev/null") >> 8, 1, 'what can\'t be written is an error');

done_testing();
