# What a command is given arrives as it was, from SQL: 1,000 arguments of random text, values of env, and
# random bytes through stdin and stdout; in a sandbox, and over ssh with any of the usual login shells.
#
# ENVRT_SEED repeats a run.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use MIME::Base64 qw(encode_base64 decode_base64);
use Test::More;
use EnvrtTest;

my $seed = $ENV{ENVRT_SEED} // time;
srand $seed;
note "ENVRT_SEED=$seed";

my $count = 1000;
my $sandboxes = temporary_directory();
my $scratch = temporary_directory();
my $node = new_cluster('bytes', conf => "envrt.sandbox_directory = '$sandboxes'\nenvrt.sandbox_on_data_filesystem = on");
my $company = make_company($node);
my $run = make_run($node, $company);
my @places;

# A place is a name, and a lease.
sub add_place
{
	my ($name, $environment) = @_;

	push @places, [ $name, acquire($node, $company, $environment, $run)->{id} ];
	return;
}

add_place('a sandbox', make_environment($node, $company, 'sandbox', { provider => 'bubblewrap' })) if has_sandboxes();
add_place('ssh', make_ssh_environment($node, $company, EnvrtFixture::Sshd->new->start));
for my $shell (qw(sh dash bash))
{
	# As the login shell, a forced command hands on to another one; what it calls sh is this one, too.
	mkdir "$scratch/$shell";
	symlink "/bin/$shell", "$scratch/$shell/sh";
	my $force = "ForceCommand PATH=$scratch/$shell:\$PATH exec /bin/$shell -c \"\$SSH_ORIGINAL_COMMAND\"";
	add_place("ssh with $shell as the login shell", make_ssh_environment($node, $company, EnvrtFixture::Sshd->new(extra => [$force])->start));
}

#######################################################################
# Text
#######################################################################
# Of a plane, but no surrogate and no NUL.
sub character_of
{
	my ($plane) = @_;
	my $code;

	do { $code = $plane * 0x10000 + int rand 0x10000 } while ($code == 0 || $code >= 0xd800 && $code < 0xe000);
	return chr $code;
}

sub some_of
{
	my (@choices) = @_;

	return join '', map { $choices[ rand @choices ] } 1 .. 1 + rand 25;
}

my @makers = (
	sub { '' },
	sub { ('-', '--', '-n', '-e', '-c', '--help', '-')[ rand 7 ] . (rand > 0.5 ? some_of('a' .. 'z') : '') },
	sub { some_of("'", '"', '\\', '$', '`', '!', '*', '?', '[', ' ', '~', '#', '^', '&', ';', '|', '(', '<', '%', '{', ',') },
	sub { some_of("\n", "\r", "\t", "\r\n", ' ', "'") },
	sub { some_of(map { chr } 1 .. 31, 127 .. 159) },
	sub { some_of(map { chr } 32 .. 126) },
	sub { join '', map { character_of(int rand 17) } 1 .. 1 + rand 25 });
my @texts = map { $makers[ $_ % @makers ]->() } 1 .. $count;
# Of every plane in any case.
$texts[$_] .= character_of($_) for 0 .. 16;

sub utf8_of
{
	my ($text) = @_;

	utf8::encode($text);
	return $text;
}

my @bytes = map { utf8_of($_) } @texts;
my $array = 'ARRAY[' . join(', ', map { literal($_) } @bytes) . ']::text[]';
my %env = map { ("V$_" => $texts[$_]) } 0 .. 99;

# The hexadecimal lines that a program in the lease writes.
sub lines_of
{
	my ($lease, $program, $more) = @_;
	my $out = $node->safe_psql('postgres',
		"SELECT stdout FROM envrt_execute('$lease', 'perl', ARRAY['-e', " . literal($program) . "]$more)");

	return split /\n/, $out, -1;
}

sub differing
{
	my ($got, @expected) = @_;

	return grep { ($got->[$_] // 'none') ne unpack('H*', $expected[$_]) } 0 .. $#expected;
}

#######################################################################
# Bytes
#######################################################################
my $random = join '', map { chr rand 256 } 1 .. 300_000;
my %input = (
	'random bytes' => $random,
	'every byte' => join('', map { chr } 0 .. 255),
	'nothing' => '',
	'a NUL' => "\0",
	'line breaks' => "\n\r\n\n",
	'a script' => "'; exit 7 #\n");

for my $place (@places)
{
	my ($name, $lease) = @$place;
	my @lines = lines_of($lease, 'print map { unpack("H*", $_) . "\n" } @ARGV', " || ARRAY['--'] || $array");
	my @wrong = differing(\@lines, @bytes);

	pop @lines;
	is(scalar @lines, $count, "$name: $count arguments");
	is_deeply([ map { unpack 'H*', $bytes[$_] } @wrong ], [], '... as they were') or note "ENVRT_SEED=$seed";
	@lines = lines_of($lease, 'print map { unpack("H*", $ENV{"V$_"}) . "\n" } 0 .. 99', ', env => ' . literal(utf8_of(json_of(\%env))) . '::jsonb');
	@wrong = differing(\@lines, @bytes[ 0 .. 99 ]);
	is_deeply([ map { unpack 'H*', $bytes[$_] } @wrong ], [], '... values of env') or note "ENVRT_SEED=$seed";
	for my $what (sort keys %input)
	{
		# With an argument that is ASCII, and one that is not: they take two ways.
		for my $argument ('-', "\x{20ac}\n")
		{
			my $answer = $node->safe_psql('postgres',
				"SELECT encode(stdout, 'base64') FROM envrt_execute_raw('$lease', 'sh', ARRAY['-c', 'cat', 'sh', "
				  . literal(utf8_of($argument)) . "], stdin => decode('" . encode_base64($input{$what}, '') . "', 'base64'))");

			ok(decode_base64($answer) eq $input{$what}, "... $what through stdin and stdout") or note "ENVRT_SEED=$seed";
		}
	}
}

sub json_of
{
	my ($hash) = @_;

	return JSON::PP->new->canonical->encode($hash);
}

done_testing();
