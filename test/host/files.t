#!/usr/bin/perl
# Transfers of files: what envrt_files makes of hostile archives, and the bubblewrap driver's transfers.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use HostTest;
use EnvrtFixture qw(has_sandboxes);
use JSON::PP ();
use POSIX ();
use Test::More;

my $base = temporary_directory();
my $outside = "$base/outside";
my $count = 0;

mkdir $outside;
spew("$outside/secret", 'untouched');

# The program is where the host under test has it.
my $program = ($ENV{ENVRT_DRIVER_HOST} // "$top/envrt_driver_host") =~ s{[^/]*$}{envrt_files}r;

#######################################################################
# Archives made by hand
#######################################################################

sub header
{
	my ($name, %field) = @_;
	my $size = $field{raw_size} // sprintf '%011o', $field{size} // length($field{data} // '');
	my $block = pack 'a100 a8 a8 a8 a12 a12 a8 a1 a100 a8 a32 a32 a8 a8 a155 x12', $name,
	  sprintf('%07o', $field{mode} // 0644), '0000000', '0000000', $size, '00000000001', ' ' x 8,
	  $field{type} // '0', $field{link} // '', "ustar  ", '', '', '0000001', '0000001', '';

	substr $block, 148, 8, sprintf "%06o\0 ", unpack '%32C*', $block;
	return $block;
}

sub entry
{
	my ($name, %field) = @_;
	my $data = $field{data} // '';

	return header($name, %field) . $data . "\0" x (-length($data) % 512);
}

my $top_entry = entry('./', type => '5', mode => 0755);
my $end = "\0" x 1024;

# Runs it; the lines that it says, its exit status, and the target.
sub unpack_archive
{
	my ($archive, %options) = @_;
	my $target = $options{target} // "$base/target" . ++$count;
	my $file = "$base/archive";

	spew($file, $archive);
	mkdir $target if !$options{target};
	my $said = `'$program' unpack @{ $options{arguments} // [] } -- '$target' < '$file' 2>&1`;
	return { said => $said, status => $?, target => $target };
}

sub listing
{
	my ($directory) = @_;

	return join ' ', sort map { s{^\Q$directory\E/}{}r } split /\n/, `find '$directory' -mindepth 1`;
}

sub refused
{
	my ($name, $archive, $said, %options) = @_;
	my $result = unpack_archive($archive, %options);

	like($result->{said}, $said, "$name: refused");
	isnt($result->{status}, 0, '... with a status');
	is(listing($result->{target}), $options{left} // '', '... and nothing is left') if !$options{target};
	return $result;
}

{
	my $result = unpack_archive($top_entry
		  . entry('./a', data => 'one')
		  . entry('./d/', type => '5', mode => 0750)
		  . entry('./d/b', data => 'two', mode => 0600)
		  . entry('./l', type => '2', link => '/nowhere')
		  . entry('./h', type => '1', link => './d/b')
		  . $end);

	is($result->{said} =~ s/^P.*\n//mgr, "D 4 6\n", 'an archive');
	is(listing($result->{target}), 'a d d/b h l', '... is unpacked');
	is(slurp("$result->{target}/h"), 'two', '... with the second name of a file');
	is((stat "$result->{target}/d")[2] & 07777, 0750, '... and permissions');
	is((stat "$result->{target}/d/b")[2] & 07777, 0600, '... of both kinds');
	is(readlink "$result->{target}/l", '/nowhere', '... and a link that leads nowhere');
}

# Out of the target by name
refused('..', $top_entry . entry('../out', data => 'x') . $end, qr/^E 38000 .*outside/m);
refused('.. further down', $top_entry . entry('a/../../out', data => 'x') . $end, qr/^E 38000 .*outside/m);
refused('.. as a directory', $top_entry . entry('../out/', type => '5') . $end, qr/^E 38000 .*outside/m);
refused('an absolute name', $top_entry . entry("$base/out", data => 'x') . $end, qr/^E 38000 .*outside/m);
refused('a name with a line break', $top_entry . entry("../a\nD 1 1\n", data => 'x') . $end, qr/^E 38000 .*\?D 1 1\?/m);
ok(!-e "$base/out", 'nothing came out');

# Out of it by links
{
	my $result = unpack_archive($top_entry . entry('s', type => '2', link => $outside) . entry('s/x', data => 'x') . $end);

	ok(!-e "$outside/x", 'a file below a link does not follow it');
	ok(-d "$result->{target}/s" && !-l "$result->{target}/s", '... but replaces it');
	$result = unpack_archive($top_entry . entry('s', type => '2', link => "$outside/secret") . entry('s', data => 'overwritten') . $end);
	is(slurp("$outside/secret"), 'untouched', 'a file over a link does not follow it');
	is(slurp("$result->{target}/s"), 'overwritten', '... but replaces it');
	$result = unpack_archive($top_entry
		  . entry('s', type => '2', link => $outside)
		  . entry('s', type => '5', mode => 0700)
		  . entry('s/y', data => 'x')
		  . $end);
	ok(!-e "$outside/y", 'nor does a directory over a link');
	mkdir my $target = "$base/prepared";
	symlink $outside, "$target/there";
	symlink "$outside/secret", "$target/file";
	unpack_archive($top_entry . entry('there/z', data => 'x') . entry('file', data => 'x') . $end, target => $target);
	ok(!-e "$outside/z", 'links that are in the target before are not followed');
	is(slurp("$outside/secret"), 'untouched', '... neither to files');
}
for my $case ([ '..', '../outside/secret' ], [ 'an absolute name', "$outside/secret" ], [ 'a link', 's/secret' ])
{
	my ($name, $link) = @$case;

	refused(
		"another name by $name",
		$top_entry . entry('s', type => '2', link => $outside) . entry('h', type => '1', link => $link) . $end,
		qr/^E 38000 /m, left => 's');
}
{
	my $result = unpack_archive($top_entry . entry('s', type => '2', link => "$outside/secret") . entry('h', type => '1', link => 's') . $end);

	is(readlink "$result->{target}/h", "$outside/secret", 'another name for a link is one of the link');
}
is((stat "$outside/secret")[3], 1, '... and the file outside has one name');

# Which branches' files the source has does not depend on what kind of entry they are.
{
	my $result = unpack_archive($top_entry
		  . entry('./x', data => 'b' x 40 . "\n")
		  . entry('./.git/packed-refs', data => join '', map { 'a' x 40 . " refs/heads/$_\n" } qw(linked stale))
		  . entry('./.git/refs/heads/linked', type => '1', link => './x')
		  . $end);

	is(listing("$result->{target}/.git/refs/heads"), 'linked', 'the file of a branch that came as a link stays');
}
{
	my $result = unpack_archive($top_entry
		  . entry('f', data => 'first')
		  . entry('h', type => '1', link => 'f')
		  . entry('h', data => 'second')
		  . $end);

	is(slurp("$result->{target}/f"), 'first', 'a file that has another name is not written through that');
	is(slurp("$result->{target}/h"), 'second', '... which is another file then');
}

# What is no file
{
	my $result = unpack_archive($top_entry
		  . entry('null', type => '3')
		  . entry('disk', type => '4')
		  . entry('pipe', type => '6')
		  . entry('suid', mode => 06755, data => 'x')
		  . entry('dir/', type => '5', mode => 02777)
		  . $end);

	is(listing($result->{target}), 'dir suid', 'devices and pipes are left out');
	is((stat "$result->{target}/suid")[2] & 07777, 0755, 'no set-user-ID');
	is((stat "$result->{target}/dir")[2] & 07777, 0777, '... nor for directories');
}
refused('a file without a name', $top_entry . entry('.', data => 'x') . $end, qr/^E 38000 .*without a name/m);
refused('more than the file', entry('one', data => 'x') . entry('two', data => 'y') . $end,
	qr/^E 38000 .*more than that/m, left => 'one');
refused('a file in a directory', entry('a/one', data => 'x') . $end, qr/^E 38000 /m);
refused('what is none', 'x' x 4096, qr/^E 38000 /m);
refused('nothing', '', qr/^S /m);
refused('zeros alone', $end, qr/^S /m);

# Sizes
refused('half a file', $top_entry . entry('whole', data => 'x') . header('half', size => 100000) . 'y' x 50000,
	qr/^S .*complete/m, left => 'whole');
refused('half a header', $top_entry . substr(entry('half', data => 'x'), 0, 300), qr/^[ES] /m);
refused('a huge size', $top_entry . header('huge', size => 8 * 1024**3 - 1) . 'y' x 100000, qr/^[ES] /m);
refused('an impossible size', $top_entry . header('huge', raw_size => "\x80" . "\0" x 3 . "\x7f" . "\xff" x 7) . 'y' x 10000, qr/^[ES] /m);
refused('a negative size', $top_entry . header('huge', raw_size => "\xff" x 12) . 'y' x 10000, qr/^[ES] /m);
refused('a name of megabytes', $top_entry . header('././@LongLink', type => 'L', size => 500 * 1024**2) . 'y' x 3_000_000, qr/^[ES] /m);
refused('attributes of megabytes', $top_entry . header('x', type => 'x', size => 500 * 1024**2) . 'y' x 3_000_000, qr/^[ES] /m);
{
	my $deep = 'd/' x 600;
	my $result = unpack_archive($top_entry . entry('././@LongLink', type => 'L', data => "${deep}f\0") . entry('x', data => 'x') . $end);

	like($result->{said}, qr/^E 53400 .*too long/m, 'nested too deep');
	$deep = 'd/' x 400;
	$result = unpack_archive($top_entry . entry('././@LongLink', type => 'L', data => "${deep}f\0") . entry('x', data => 'x') . $end);
	like($result->{said}, qr/^D 1 1$/m, 'and not too deep');
	system 'rm', '-rf', $result->{target};
}

# What is the server's own
{
	mkdir "$base/data";
	mkdir "$base/data/sub";
	symlink "$base/data", "$base/alias";
	my @protect = (arguments => [ '--protect', "$base/data" ]);

	for my $target ("$base/data", "$base/data/sub", "$base/data/new", "$base/alias/sub", "$base/x/../data")
	{
		mkdir "$base/x";
		refused("into $target", $top_entry . entry('f', data => 'x') . $end, qr/^E 42501 .*(?:server itself|through the link "alias")/m, target => $target, @protect);
	}
	refused('a file there', entry('f', data => 'x') . $end, qr/^E 42501 /m, target => "$base/data/sub/f", @protect);
	refused('into what it is in', $top_entry . entry('data/f', data => 'x') . $end, qr/^E 42501 /m, target => $base, @protect);
	is(listing("$base/data"), 'sub', 'nothing is there');
	spew("$base/data/sub/f", 'x');
	for my $source ("$base/data", "$base/data/sub", "$base/data/sub/f", "$base/alias/sub/f", $base)
	{
		my $said = `'$program' pack --protect '$base/data' -- '$source' 2>&1 >/dev/null`;

		like($said, qr/^E 42501 /m, "nothing from $source");
	}
	my $listed = `'$program' list --protect '$base/data' -- '$base' 2>/dev/null`;
	like($listed, qr{ \./outside/secret\0}, 'a list');
	unlike($listed, qr{ \./data/}, '... is without what is there');
	# What is replaced
	spew("$base/key", 'secret');
	mkdir "$base/place";
	symlink "$base/data", "$base/place/data";
	symlink "$base/key", "$base/place/key";
	link "$base/key", "$base/place/name";
	push @{ $protect[1] }, '--protect', "$base/key", '--protect', "$base/missing";
	my @links = map { readlink "$base/place/$_" } qw(data key);
	for my $entry (map { [$_], [ $_, type => '2', link => '/' ], [ $_, type => '1', link => 'other' ], [ "$_/x", data => 'x' ], [ "$_/", type => '5' ] } qw(data key name))
	{
		my $result = unpack_archive($top_entry . entry('other', data => 'x') . entry(@$entry) . $end, target => "$base/place", @protect);

		like($result->{said}, qr/^E 42501 .*server itself/m, "over a link to it or a name of it: @$entry");
	}
	is_deeply([ map { readlink "$base/place/$_" } qw(data key) ], \@links, 'the links are there');
	is((stat "$base/place/name")[3], 2, '... and the name');
	my $named = unpack_archive($top_entry . entry('h', type => '1', link => 'name') . $end, target => "$base/place", @protect);
	like($named->{said}, qr/^E 42501 .*server itself/m, 'another name for it');
	ok(!-e "$base/place/h", '... is not made');
	for my $source ("$base/key", "$base/place/key", "$base/place/name", "$base/place")
	{
		my $said = `'$program' pack --protect '$base/key' -- '$source' 2>&1 >/dev/null`;

		like($said, qr/^E 42501 /m, "nothing of it from $source");
	}
	refused('over a file there', entry('f', data => 'x') . $end, qr/^E 42501 /m, target => "$base/key", @protect);
	refused('into it', entry('key', data => 'x') . $end, qr/^E 42501 /m, target => "$base/place/", @protect);
	is(slurp("$base/key"), 'secret', '... stays as it is');
	SKIP:
	{
		skip 'may look at anything', 1 if $> == 0;
		mkdir "$base/closed", 0;
		refused('what can not be looked at', $top_entry . $end, qr/^E 42501 .*protected/m, arguments => [ '--protect', "$base/closed/x" ]);
		chmod 0700, "$base/closed";
	}
}

# Ways through links: a pull may have made any that is the server user's own.
{
	mkdir "$base/way";
	symlink $outside, "$base/way/planted";
	symlink 'planted', "$base/way/twice";
	symlink "$outside/new", "$base/way/dangling";
	symlink "$outside/secret", "$base/way/file";
	for my $path (qw(planted planted/ planted/. planted/new twice twice/new ../way/planted/x planted/../way dangling))
	{
		refused("a target's way: $path", $top_entry . entry('f', data => 'x') . $end, qr/^E 42501 .*through the link/m, target => "$base/way/$path");
	}
	refused("a file's way: $_", entry('f', data => 'x') . $end, qr/^E 42501 .*through the link/m, target => "$base/way/$_")
	  for qw(planted planted/f planted/ dangling file);
	for my $path (qw(planted planted/secret twice file))
	{
		for my $mode (qw(pack list))
		{
			my $said = `'$program' $mode -- '$base/way/$path' 2>&1 >/dev/null`;

			like($said, qr/^E 42501 .*through the link/m, "$mode: a source's way: $path");
		}
	}
	like(`'$program' choose -- '$base/way/planted' 2>&1 </dev/null`, qr/^E 42501 .*through the link/m, 'nor is there anything to choose from');
	is(listing($outside), 'secret', 'nothing is there');
	is(slurp("$outside/secret"), 'untouched', '... nor has changed');
	SKIP:
	{
		skip 'no link of root', 1 if $> == 0 || !-l '/bin' || (lstat '/bin')[4] != 0;
		like(`'$program' pack -- /bin/true 2>&1 >/dev/null`, qr/^D 1 /m, "root's links are followed");
	}
}

# What is protected is not made either, whatever the case of its letters.
{
	mkdir "$base/home";
	spew("$base/home/.bashrc", 'x');
	my @protect = (arguments => [ '--protect', "$base/home/key", '--protect-hidden', "$base/home" ]);

	for my $entry ([ 'key', data => 'x' ], [ 'KEY/', type => '5' ], [ 'Key', type => '2', link => '/' ], [ '.ssh/authorized_keys', data => 'x' ], [ '.pgpass', data => 'x' ], [ '.bashrc', data => 'y' ], [ '.profile', type => '2', link => '/' ])
	{
		refused("@$entry", $top_entry . entry(@$entry) . $end, qr/^E 42501 .*server itself/m, target => "$base/home", @protect);
	}
	refused("into $_", $top_entry . entry('f', data => 'x') . $end, qr/^E 42501 .*server itself/m, target => "$base/home/$_", @protect) for qw(.ssh .ssh/ key .bashrc);
	refused("a file to $_", entry('.netrc', data => 'x') . $end, qr/^E 42501 .*server itself/m, target => "$base/home/$_", @protect) for '', '.netrc';
	like(`'$program' pack --protect-hidden '$base/home' -- '$base/home' 2>&1 >/dev/null`, qr/^E 42501 .*server itself/m, 'nor is it read');
	like(`'$program' pack --protect-hidden '$base/home' -- '$base/home/.bashrc' 2>&1 >/dev/null`, qr/^E 42501 .*server itself/m, '... by its name');
	is(listing("$base/home"), '.bashrc', 'nothing is there');
	unpack_archive($top_entry . entry('a/.x', data => 'x') . $end, target => "$base/home", @protect);
	is(listing("$base/home"), '.bashrc a a/.x', 'what is further down may begin with a dot');
}

# Directories that may not be written, in any order; times of all kinds.
{
	my $archive = join '', $top_entry,
	  entry('d/', type => '5', mode => 0555), entry('d/s/', type => '5', mode => 0555), entry('e/', type => '5'),
	  entry('d/f', data => 'x'), entry('d/s/g', data => 'y'), entry('e/h'), entry('d/i', data => 'z'), $end;
	my $target = "$base/ordered";

	mkdir $target;
	for my $round (qw(once twice))
	{
		my $result = unpack_archive($archive, target => $target, arguments => $round eq 'twice' ? [ '--from-workspace', 'x' ] : []);

		like($result->{said}, qr/^D 4 3$/m, "directories before what is in them: $round");
		is(join(' ', map { sprintf '%o %d', (stat "$target/$_")[ 2, 9 ] } qw(d d/s)) =~ s/40//gr, '555 1 555 1', '... with their permissions and times');
	}
	is(listing($target), 'd d/f d/i d/s d/s/g e e/h', '... and all is there');
	my ($from, $to) = map { mkdir "$base/times$_"; "$base/times$_" } qw(1 2);
	my $times = sub { return `cd '$_[0]' && find . -mindepth 1 -printf '%p %T@\n' | sort` };
	system "cd '$from' && mkdir d && touch -d '1969-12-31 12:00:00.25 UTC' old && touch -d '1950-01-01 UTC' older && touch -d '2001-01-01 01:01:01.123456789' new && ln -s x l && touch -h -d '2002-01-01 01:01:01.987654321' l && touch -d '2003-01-01 01:01:01.000000001' d";
	system "'$program' pack -- '$from' 2>'$base/said' | '$program' unpack -- '$to' 2>/dev/null";
	is($times->($to), $times->($from), 'times are exact');
	system "rm -rf '$to'; mkdir '$to'; '$program' pack -- '$from' 2>/dev/null | tar -xpf - --warning=no-timestamp -C '$to'";
	is($times->($to), $times->($from), '... for a tar too');
	my $long = join '/', map { $_ x 200 } qw(a b c);
	system "rm -rf '$to' '$from'; mkdir -p '$to' '$from/$long'; cd '$from' && echo x >'$long/f' && ln -s '$long' l && printf x >name && truncate -s 50M holes && printf y | dd of=holes bs=1 seek=30M conv=notrunc 2>/dev/null; printf z >>holes";
	system "'$program' pack -- '$from' 2>/dev/null | tar -xpf - -C '$to'";
	is(`diff -r --no-dereference '$from' '$to'`, '', 'long names, and a file with holes');
	cmp_ok((stat "$to/holes")[12], '<', 1000, '... which it still has');
	SKIP:
	{
		spew("$from/named", 'x');
		skip 'no attributes here', 1 if system("python3 -c 'import os; os.setxattr(\"$from/named\", \"user.x\", b\"y\")' 2>/dev/null") != 0;
		like(`'$program' pack -- '$from' 2>&1 >/dev/null`, qr/^N extended attributes .* of 1 files/m, 'what is not transferred is said');
	}
}

# What a git would run
{
	my $unpacked = sub {
		my ($source, $target, @entries) = @_;

		mkdir $target;
		return unpack_archive(join('', $top_entry, (map { entry(@$_) } @entries), $end),
			target => $target, arguments => [ '--from-workspace', "'$source'" ]);
	};
	my $left = sub { my $result = $unpacked->('', "$base/git" . ++$count, @_); return listing($result->{target}) };

	is($left->([ '.git', data => 'gitdir: evil' ], ['sub/f'], ['sub/.git']), 'sub sub/f', 'a .git that is a file');
	is($left->([ '.git', type => '2', link => 'evil' ], [ '.GIT', type => '2', link => 'evil' ]), '', '... or a link');
	is($left->(['evil'], [ '.git', type => '1', link => 'evil' ]), 'evil', '... or another name');
	is($left->(map { [".git/$_"] } qw(HEAD commondir config Config config.worktree hooks/x rebase-merge/git-rebase-todo refs/heads/config refs/heads/hooks/x info/config x/.git/config x/.git/HEAD)),
		'.git .git/HEAD .git/info .git/info/config .git/refs .git/refs/heads .git/refs/heads/config .git/refs/heads/hooks .git/refs/heads/hooks/x .git/x .git/x/.git .git/x/.git/HEAD',
		'settings in a .git');
	is($left->(map { [".git/$_"] } qw(worktrees/w/HEAD worktrees/w/commondir worktrees/w/gitdir worktrees/w/config.worktree worktrees/w/logs/config)),
		'.git .git/worktrees .git/worktrees/w .git/worktrees/w/HEAD .git/worktrees/w/logs .git/worktrees/w/logs/config',
		'settings of worktrees');
	is($left->(map { [".git/$_"] } qw(modules/a/b/HEAD modules/a/b/config modules/a/b/hooks/x modules/a/b/commondir modules/a/modules/c/config)),
		'.git .git/modules .git/modules/a .git/modules/a/b .git/modules/a/b/HEAD',
		'settings of submodules');
	is($left->((map { [ ".git/$_", type => '2', link => '../evil' ] } qw(modules worktrees modules/a modules/a/b worktrees/w HEAD))), '.git .git/HEAD', 'links to such');
	is($left->(@$_, [ 'l', type => '2', link => 'x' ], [ '.git/modules', type => '1', link => 'l' ]), join(' ', '.git l', map { $_->[0] } @$_), '... by another name') for [], [ ['x'] ];
	for my $case ([ '.git', 'plain' ], [ 'x', 'app/.git' ], [ 'x/.git/modules/m', 'module' ])
	{
		my ($from, $to) = @$case;

		system "mkdir -p '$base/app/.git'";
		$unpacked->($from, "$base/$to", ['./config'], ['hooks/x'], ['HEAD']);
		is(listing("$base/$to/."), 'HEAD', "a git directory itself, from $from to $to");
		unlink "$base/$to/HEAD";
	}
	for my $target ("$base/app/.git/hooks", "$base/app/.git/config", "$base/app/.git/")
	{
		my $result = unpack_archive(entry('config', data => 'x') . $end, target => $target, arguments => [ '--from-workspace', 'x' ]);

		like($result->{said}, qr/^E 42501 .*git/m, "a file to $target");
	}
	like($unpacked->('x', "$base/app/.git/hooks", ['x'])->{said}, qr/^E 42501 .*git/m, 'a directory of hooks');
	is(listing("$base/app"), '.git .git/hooks', 'nothing is there');
	is(unpack_archive(entry('config', data => 'x') . $end, target => "$base/config", arguments => [ '--from-workspace', '.git/config' ])->{status}, 0, 'a setting to where it is none');
}

# Permissions are the workspace's only as far as they harm nobody.
{
	my $target = "$base/modes";
	my $mode = sub { return sprintf '%o', (stat "$target/$_[0]")[2] & 07777 };

	system "mkdir -p '$target/private/x' '$target/closed'; chmod 0700 '$target/private'; chmod 02550 '$target/closed'; chmod 0750 '$target'";
	unpack_archive(entry('./', type => '5', mode => 0777)
		  . entry('private/', type => '5', mode => 0777)
		  . entry('closed/', type => '5', mode => 0777)
		  . entry('closed/f', mode => 0666)
		  . entry('new/', type => '5', mode => 0777)
		  . entry('new/f', mode => 0777)
		  . $end,
		target => $target, arguments => [ '--from-workspace', 'x' ]);
	is($mode->('.'), '750', 'the target keeps its mode');
	is($mode->('private'), '700', '... and so does a directory that is there');
	is($mode->('closed'), '2550', '... that may not be written');
	is($mode->('new'), '755', 'a new directory is writable for its owner only');
	is($mode->('new/f'), '755', '... as is a new file');
	is($mode->('closed/f'), '644', '... of any kind');
}

# What is known already
utime 1_600_000_000, 1_600_000_000, "$outside/secret";
spew("$base/list", my $list = `'$program' list -- '$outside' 2>/dev/null`);
like(`'$program' pack --known -- '$outside' 2>&1 >/dev/null <'$base/list'`, qr/^D 0 0$/m, 'what is in a list is not sent');
spew("$base/list", substr $list, 0, -1);
like(`'$program' pack --known -- '$outside' 2>&1 >/dev/null <'$base/list'`, qr/^D 1 9$/m, '... unless the list has no end');

# A list that goes on and on
like(`yes | '$program' pack --known -- '$outside' 2>&1 >/dev/null`, qr/^D 1 9$/m, 'a list without an end is none');

# No more than is allowed
{
	my @limit = (arguments => [ '--max-bytes', 1024**2 ]);

	refused('a file that is too large', $top_entry . entry('small', data => 'x') . entry('large', data => 'x' x 1024**2) . $end,
		qr/^E 53400 .*max_pull/m, left => 'small', @limit);
	refused('an endless file', $top_entry . header('large', size => 8 * 1024**3 - 1) . "\0" x 1500000, qr/^E 53400 .*max_pull/m, @limit);
	my $result = unpack_archive(join('', $top_entry, map({ entry("f$_") } 1 .. 300), $end), @limit);
	like($result->{said}, qr/^E 53400 .*max_pull/m, 'too many files');
	$result = unpack_archive(join('', $top_entry, map({ entry("f$_") } 1 .. 200), $end), @limit);
	like($result->{said}, qr/^D 200 0/m, '... and not too many');
	# What takes far more room than it is long.
	my $deep = 'd/' x 300;
	$result = unpack_archive($top_entry . entry('././@LongLink', type => 'L', data => "${deep}f\0") . entry('x') . $end, @limit);
	like($result->{said}, qr/^E 53400 .*max_pull/m, 'directories on the way to a file');
	system 'rm', '-rf', $result->{target};
	my $map = join '', map { $_ . "\n" } 300, map { ($_ * 1_000_000, 1) } 0 .. 299;
	my @sparse = map { sprintf('%d %s', length($_) + 3, $_) } "GNU.sparse.major=1\n", "GNU.sparse.minor=0\n", "GNU.sparse.name=holes\n", "GNU.sparse.realsize=300000000\n";
	$map .= "\0" x (-length($map) % 512);
	$result = unpack_archive($top_entry . entry('h', type => 'x', data => join '', @sparse) . entry('h', data => $map . 'x' x 300) . $end, @limit);
	like($result->{said}, qr/^E 53400 .*max_pull/m, 'a file with many holes');
	$result = unpack_archive($top_entry . entry('h', type => 'x', data => join '', @sparse) . entry('h', data => $map . 'x' x 300) . $end);
	like($result->{said}, qr/^D 1 300000000$/m, '... which is one');
	cmp_ok((stat "$result->{target}/holes")[12] * 512, '<', 10_000_000, '... and stays one');
}

# Killed half-way, by whatever signal: nothing is there but what was complete.
for my $signal (qw(TERM KILL))
{
	my $target = "$base/killed$signal";

	mkdir $target;
	my $pid = open(my $pipe, '|-', $program, 'unpack', '--', $target) // die "can't run it: $!";
	$pipe->autoflush(1);
	print $pipe $top_entry . entry('whole', data => 'x') . header('half', size => 10_000_000) . 'y' x 1_000_000;
	wait_until('the first file is there', sub { -e "$target/whole" });
	kill $signal, $pid;
	local $SIG{PIPE} = 'IGNORE';
	close $pipe;
	is(listing($target), 'whole', "SIG$signal leaves no half file");
}

#######################################################################
# The ssh driver
#######################################################################

my $source = "$base/source";

mkdir $source;
mkdir "$source/empty";
mkdir "$source/deep";
spew("$source/deep/$_", 'x' x $_, 0400 + ($_ % 8 & 5) * 8) for 1 .. 300;
spew("$source/script", "#!/bin/sh\n", 0755);
symlink '/etc/passwd', "$source/link";
symlink '../outside', "$source/out";
spew("$source/\xff\n name", 'bytes');
chmod 0500, "$source/deep";
# What was changed long before it was sent need not be sent again.
utime 1_600_000_000, 1_600_000_000, split /\0/, `find '$source' -type f -print0`;

# Names, kinds, permissions, targets and contents below a directory.
sub digest
{
	my ($directory) = @_;

	return `cd '$directory' && find . -mindepth 1 ! -type l -printf '%P %y %m %s\\n' -o -type l -printf '%P %y %l\\n' | LC_ALL=C sort; find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum`;
}

# The processes of a host that move files.
sub movers
{
	my ($host) = @_;

	return grep { (eval { slurp("/proc/$_/cmdline") } // '') =~ /^(?:envrt_files|bwrap)\0/ } EnvrtFixture::processes_below($host->{pid});
}

sub no_process_left
{
	my ($host, $name) = @_;

	ok(eval { wait_until('they are gone', sub { !movers($host) }); 1 }, $name);
	ok(eval { wait_until('the transfer is over', sub { !@{ $host->stats->{transfers} } }); 1 }, '... nor a transfer');
	return;
}

sub moved
{
	my ($host) = @_;

	return wait_until('something was moved', sub { (grep { $_->{bytes} > 1_000_000 } @{ $host->stats->{transfers} })[0] });
}

sub gone_or
{
	my ($directory, $expected, $name) = @_;

	# The other side of a connection is as fast as it is.
	eval { wait_until('nothing else is left', sub { listing($directory) eq $expected }) };
	return is(listing($directory), $expected, $name);
}

my $big = "$base/big";
endless_file($big);

# What comes first in the PATH of commands there, later on.
my $bin = "$base/bin";
mkdir $bin;
my $sshd = EnvrtFixture::Sshd->new->start;

{
	my $host = start_host(control => {});
	my $client = $host->connect;
	my $workspace = "$sshd->{directory}/home/workspace";
	my $remote = sub {
		my ($method, %other) = @_;

		return {
			%{ HostTest::request(ssh_config($sshd)) },
			lease => { id => '10000000-0000-4000-8000-000000000001', metadata => { remoteCwd => $workspace } },
			%other
		};
	};
	# What was said besides the last one's counts.
	my $notices;
	my $call = sub {
		my $answer = $client->call(shift, $remote->(@_), 60);

		$notices = delete $answer->{result}{notices} // [] if $answer->{result};
		return $answer;
	};
	my $push = sub { return $call->('environmentPushFiles', 'push', @_) };
	my $pull = sub { return $call->('environmentPullFiles', 'pull', @_) };

	is_error($push->(localPath => $source), '55000', qr/can't be entered/, 'ssh: a workspace that is not there');
	mkdir $workspace;
	for my $tar (qw(gnu busybox))
	{
		if ($tar eq 'busybox')
		{
			next if !-x '/bin/busybox';
			# For each of what the script runs.
			symlink '/bin/busybox', "$bin/$_" for qw(tar find mv rm mkdir chmod);
			# It leaves directories writable.
			chmod 0700, "$source/deep";
			$sshd->stop;
			$sshd->{options}{extra} = ["SetEnv PATH=$bin:/usr/bin:/bin"];
			$sshd->start;
		}
		my $answer = $push->(localPath => $source);
		is_deeply($answer->{result}, { files => 304, bytes => 45165 }, "$tar: a push") or diag(explain $answer);
		is(digest($workspace), digest($source), '... brings all as it is');
		is((stat "$workspace/script")[9], (stat "$source/script")[9], '... with its time');
		is_deeply($notices, $tar eq 'gnu' ? [] : ["times are transferred to the second: the other end's tar knows no fractions"], '... or says what is not exact');
		spew("$workspace/other", 'stays');
		spew("$workspace/script", 'is replaced');
		chmod 0700, "$workspace/deep";
		unlink "$workspace/deep/1";
		# What is replaced, and what is not there; without GNU's find, all.
		is_deeply($push->(localPath => $source)->{result}, $tar eq 'gnu' ? { files => 2, bytes => 11 } : { files => 304, bytes => 45165 }, "$tar: the same again");
		is(slurp("$workspace/other"), 'stays', '... leaves what else is there');
		is(slurp("$workspace/script"), "#!/bin/sh\n", '... replaces what is');
		is(slurp("$workspace/deep/1"), 'x', '... and brings what is not');
		unlink "$workspace/other";
		is(digest($workspace), digest($source), '... and all is equal again');
		is_deeply($pull->(localPath => "$base/pulled_$tar")->{result}, { files => 304, bytes => 45165 }, "$tar: a pull");
		is(digest("$base/pulled_$tar"), digest($source), '... brings it back');
		{
			# By the second time only what differs comes, and what is not said to be equal.
			my $pulled = "$base/pulled_$tar";
			my $all = { files => 304, bytes => 45165 };
			my @again = (localPath => $pulled);

			is_deeply($pull->(@again)->{result}, $tar eq 'gnu' ? { files => 0, bytes => 0 } : $all, "$tar: the same again");
			spew("$pulled/script", 'changed here');
			chmod 0700, "$pulled/deep";
			unlink "$pulled/deep/1";
			spew("$pulled/deep/1", 'longer', (stat "$source/deep/1")[2] & 07777);
			utime 1_600_000_000, 1_600_000_000, "$pulled/deep/1";
			chmod 0640, "$pulled/deep/2";
			unlink "$pulled/deep/3";
			symlink "$outside/secret", "$pulled/deep/3";
			is_deeply($pull->(@again)->{result}, $tar eq 'gnu' ? { files => 4, bytes => 16 } : $all, '... or what was changed here');
			chmod((stat "$source/deep")[2] & 07777, "$pulled/deep");
			is(digest($pulled), digest($source), '... which is undone');
			my $odd = "$workspace/-odd\n'\"\\ \xff*";
			mkdir $odd;
			spew("$odd/$_", $_) for '--help', "-C\n.", '*', "\xfe";
			spew("$workspace/script", "#!/bin/ls\n", 0755);
			# It may have changed again in the time in which its file system knows only one time.
			utime 4_000_000_000, 4_000_000_000, "$workspace/script", map { "$odd/$_" } '--help', "-C\n.", '*', "\xfe";
			is_deeply($pull->(@again)->{result}, $tar eq 'gnu' ? { files => 5, bytes => 22 } : { files => 308, bytes => 45177 }, '... or there');
			is(digest($pulled), digest($workspace), '... whatever its name');
			is_deeply($pull->(@again)->{result}, $tar eq 'gnu' ? { files => 5, bytes => 22 } : { files => 308, bytes => 45177 }, '... and what is too young');
			system 'rm', '-rf', $odd;
		}
		is_deeply($push->(localPath => "$source/script", remotePath => 'new/place/s')->{result}, { files => 1, bytes => 10 }, "$tar: a push of a file");
		is(slurp("$workspace/new/place/s"), "#!/bin/sh\n", '... to a place that was not there');
		$push->(localPath => "$source/script", remotePath => "$workspace/new");
		ok(-x "$workspace/new/script", '... into a directory, by an absolute path');
		$push->(localPath => "$source/script", remotePath => 'made/');
		ok(-x "$workspace/made/script", '... into one that is to be made');
		is_deeply($pull->(localPath => "$base/single", remotePath => 'new/script')->{result}, { files => 1, bytes => 10 }, "$tar: a pull of a file");
		is(slurp("$base/single"), "#!/bin/sh\n", '... as it is');
		system "mkdir '$workspace/many'; cd '$workspace/many' && seq -f '%0250g' 15000 | xargs touch";
		spew("$base/ten", 'x' x 10_000_000);
		is_deeply($push->(localPath => "$base/ten", remotePath => 'many/', limits => { stallMs => 5000 })->{result}, { files => 1, bytes => 10_000_000 }, "$tar: a push of a file to many");
		system 'chmod', '-R', 'u+rwx', $workspace;
		system "rm -rf '$workspace'; mkdir '$workspace'";
	}

	# Links
	symlink $outside, "$workspace/link";
	symlink "$outside/secret", "$workspace/script";
	symlink $outside, "$workspace/deep";
	is_error($push->(localPath => $source, remotePath => 'link'), '22023', qr/no directory/, 'a push to a link');
	is_error($push->(localPath => $source, remotePath => 'link/x'), '22023', qr/no directory/, '... and below it');
	is_error($pull->(localPath => "$base/none", remotePath => 'link'), '22023', qr/is a link/, 'a pull of a link');
	is_error($pull->(localPath => "$base/none", remotePath => 'link/secret'), '22023', qr/no directory/, '... and below it');
	is_error($pull->(localPath => "$base/none", remotePath => 'nothing'), '58P01', qr/not there/, 'a pull of nothing');
	ok($push->(localPath => $source)->{result}, 'a push over links');
	is(slurp("$outside/secret"), 'untouched', '... writes through none');
	is(listing($outside), 'secret', '... neither to directories');
	ok(!-l "$workspace/deep", '... but replaces them');
	is_error($push->(localPath => $source, remotePath => $_), '22023', qr/leads out/, "the remote path \"$_\"") for '..', '/etc', "$workspace/../x", "${workspace}2";
	system 'chmod', '-R', 'u+rwx', $workspace;
	system "rm -rf '$workspace'; mkdir '$workspace'";

	# With GNU's programs again: a git working tree, whose state travels with its files, and of its objects those that are new.
	unlink glob "$bin/*";
	SKIP:
	{
		skip 'there is no git here', 1 if system('git --version >/dev/null 2>&1') != 0;
		my $tree = "$base/tree_for_ssh";
		my $git = 'git -c user.name=a -c user.email=a@example.com';
		my $brings = sub { return $_[0]->(localPath => $tree)->{result}{bytes} };

		system "git init -q '$tree' && cd '$tree' && head -c 3000000 /dev/urandom >large && $git add . && $git commit -qm one && $git gc -q";
		utime 1_600_000_000, 1_600_000_000, split /\0/, `find '$tree' -type f -print0`;
		cmp_ok($brings->($push), '>', 6_000_000, 'ssh: a git working tree');
		system "cd '$tree' && echo two >two && $git add two && $git commit -qm two";
		cmp_ok($brings->($push), '<', 100_000, '... a commit later only what is new is sent');
		system "cd '$workspace' && echo three >three && $git add three && $git commit -qm three && echo four >four";
		cmp_ok($brings->($pull), '<', 100_000, '... and back');
		is(`cd '$tree' && git log --format=%s && git status --porcelain && git fsck --strict 2>&1`, "three\ntwo\none\n?? four\n", '... which is complete');
		system "cd '$tree' && git branch mine && cd '$workspace' && echo 3 >three && $git commit -qam four && git branch other && git gc -q";
		ok(!-e "$workspace/.git/refs/heads/other" && !glob("$workspace/.git/refs/heads/ma*"), '... and packed');
		$brings->($pull);
		is(`cd '$tree' && git log -1 --format=%s && git log -1 --format=%s other && git log -1 --format=%s mine`, "four\nfour\nthree\n", '... which the old state does not hide');
		system "cd '$tree' && $git commit -q --allow-empty -m five && cd '$workspace' && $git branch theirs";
		$brings->($push);
		system "cd '$tree' && $git commit -q --allow-empty -m six && git branch more && git pack-refs --all && $git commit -q --allow-empty -m seven && git pack-refs --all && git checkout -q more && $git commit -q --allow-empty -m eight";
		$brings->($push);
		is(`cd '$workspace' && git log -1 --format=%s && git log -1 --format=%s \@{-1} && git log -1 --format=%s theirs && git log -1 --format=%s mine`, "eight\nseven\nfour\nthree\n", '... nor for a push');
		system "rm -rf '$workspace'; mkdir '$workspace'";
	}

	# Whatever the user's environment has for the programs
	$sshd->stop;
	$sshd->{options}{extra} = ["SetEnv PATH=$bin:/usr/bin:/bin TAR_OPTIONS=--exclude-vcs POSIXLY_CORRECT=1 GREP_OPTIONS=-v CDPATH=/ ENV=/nowhere BASH_ENV=/nowhere IFS=x LANG=xx LC_ALL=xx"];
	$sshd->start;
	{
		my $tree = "$base/plain";
		my $all = { files => 4, bytes => 4 };

		system "mkdir -p '$tree/.git' '$tree/d/closed' && cd '$tree' && printf 1 >.git/x; printf 2 >d/a; printf 3 >d/closed/b; printf 4 >c; chmod 0555 d/closed";
		system "find '$tree' -exec touch -d '2020-01-01 01:01:01.123456789' {} +";
		is_deeply($push->(localPath => $tree)->{result}, $all, 'an environment of one\'s own: a push');
		is(digest($workspace), digest($tree), '... brings all');
		is(`cd '$workspace' && find . -mindepth 1 -printf '%T@\n' | sort -u`, "1577840461.1234567890\n", '... with the time to the nanosecond');
		is_deeply($push->(localPath => $tree)->{result}, { files => 0, bytes => 0 }, '... and once only');
		is_deeply($push->(localPath => $tree, force => JSON::PP::true)->{result}, $all, '... unless it is forced');
		is_deeply($pull->(localPath => "$base/plain2")->{result}, $all, '... a pull');
		is_deeply($pull->(localPath => "$base/plain2")->{result}, { files => 0, bytes => 0 }, '... once only');
		is_deeply($pull->(localPath => "$base/plain2", force => JSON::PP::true)->{result}, $all, '... unless it is forced');

		# A directory that may not be written, again
		chmod 0644, "$tree/d/closed/b";
		spew("$tree/d/closed/b", 'bb');
		is_deeply($push->(localPath => $tree)->{result}, { files => 1, bytes => 2 }, 'into a directory that may not be written');
		is(digest($workspace), digest($tree), '... which it is again');
		chmod 0555, "$workspace/d";
		$push->(localPath => "$tree/c", remotePath => 'd/');
		is((stat "$workspace/d")[2] & 07777, 0555, 'a file into such a one');
		chmod 0755, "$workspace/d";
		ok(unlink("$workspace/d/c"), '... arrives');

		# What a push that was killed has left
		mkdir "$workspace/.envrt-transfer-$_" for qw(old young used);
		spew("$workspace/.envrt-transfer-used/pid", "$$\n");
		utime time - 200_000, time - 200_000, map { "$workspace/.envrt-transfer-$_" } qw(old used);
		$push->(localPath => $tree);
		is(join(' ', map { s/.*-//r } glob("$workspace/.envrt-transfer-*")), 'used young', 'what was left a day ago goes');
		like("@$notices", qr/^removed \.envrt-transfer-old/, '... and is named');
		system "rm -rf $workspace/.envrt-transfer-*";

		# What can't be put into place
		mkdir "$tree/other";
		spew("$tree/other/$_", $_) for 1 .. 3;
		spew("$tree/c", 'changed');
		unlink "$workspace/c";
		mkdir "$workspace/c";
		my $before = digest($workspace);
		my $answer = $push->(localPath => $tree);
		is_error($answer, '55000', qr/"c" is a directory already/, 'a directory where a file is to be');
		like($answer->{error}{data}{hint}, qr/Nothing in the workspace has changed/, '... changes nothing, and says so');
		is(digest($workspace), $before, '... which is true');
		rmdir "$workspace/c";
		mkdir "$workspace/other";
		spew("$bin/mv", "#!/bin/sh\ncase \$* in */other/2*) exit 1; esac; exec /bin/mv \"\$@\"\n", 0755);
		$answer = $push->(localPath => $tree);
		is_error($answer, '38000', qr/status/, 'one that fails on the way');
		like($answer->{error}{data}{detail}, qr{All is in place but these files:\n}, '... says what is not in place');
		is(join(' ', sort $answer->{error}{data}{detail} =~ m{^(\./.*)}mg), './c ./other/1 ./other/2 ./other/3', '... by name');
		unlink "$bin/mv";
		spew("$bin/tar", "#!/bin/sh\n[ \$1 = --version ] && exit; echo 'tar: x: Cannot write: Disk quota exceeded' >&2; exit 2\n", 0755);
		is_error($push->(localPath => $tree), '53100', qr/quota/, 'a quota');
		unlink "$bin/tar";

		# Holes
		system 'truncate', '-s', '50M', "$tree/holes";
		is_deeply($push->(localPath => "$tree/holes")->{result}, { files => 1, bytes => 50 * 1024**2 }, 'a file of holes');
		cmp_ok((stat "$workspace/holes")[12], '<', 1000, '... stays one');
		system 'chmod', '-R', 'u+rwx', $workspace;
		system "rm -rf '$workspace'; mkdir '$workspace'";
	}
	$sshd->stop;
	$sshd->{options}{extra} = ["SetEnv PATH=$bin:/usr/bin:/bin"];
	$sshd->start;

	# Half-way
	for my $how (qw(cancelled left))
	{
		for my $direction (qw(Push Pull))
		{
			my $other = $host->connect;

			endless_file("$workspace/big") if $direction eq 'Pull';
			my $call = $other->send_call("environment${direction}Files",
				$remote->('', localPath => $direction eq 'Push' ? $big : "$base/into", remotePath => $direction eq 'Pull' ? 'big' : undef));
			moved($host);
			$how eq 'left' ? $other->close : $other->call('envrt/cancel', { id => $call });
			no_process_left($host, "ssh, $direction $how: no process is left");
			gone_or($workspace, $direction eq 'Pull' ? 'big' : '', '... nor anything there');
			ok(!-e "$base/into", '... nor here');
			unlink "$workspace/big";
		}
	}
	{
		my $call = $client->send_call('environmentPushFiles', $remote->('', localPath => $big));
		moved($host);
		kill 'KILL', movers($host);
		is_error($client->answer($call), '38000', qr/signal 9/, 'the end here is killed');
		gone_or($workspace, '', '... which leaves nothing there');
		$call = $client->send_call('environmentPushFiles', $remote->('', localPath => $big, limits => { stallMs => 1000 }));
		moved($host);
		kill 'STOP', movers($host);
		is_error($client->answer($call), '08006', qr/no progress/, 'it stops');
		no_process_left($host, '... which leaves no process');
		gone_or($workspace, '', '... and nothing there');
		$call = $client->send_call('environmentPushFiles', $remote->('', localPath => $big));
		moved($host);
		# (What was moved may be on the way to it.)
		kill 'KILL', @{ wait_until('tar runs there', sub {
			my @tars = grep { (eval { slurp("/proc/$_/cmdline") } // '') =~ /^tar\0/ } EnvrtFixture::processes_below($sshd->{pid});
			@tars && \@tars;
		}) };
		is_error($client->answer($call), '38000', qr/status/, 'the tar there is killed');
		gone_or($workspace, '', '... which leaves nothing there');
		no_process_left($host, '... and no process here');
		$call = $client->send_call('environmentPushFiles', $remote->('', localPath => $big));
		moved($host);
		kill 'KILL', $host->{pid};
		gone_or($workspace, '', 'the host is killed: nothing is left there');
	}

	$host = start_host(control => {});
	$client = $host->connect;

	# What is in the way of a pull of what differs
	unlink glob "$bin/*";
	spew("$workspace/$_", $_) for qw(here gone);
	mkdir "$workspace/closed", 0;
	is_error($pull->(localPath => "$base/differing"), '38000', qr/Permission denied/, 'what find can not read is not left out');
	rmdir "$workspace/closed";
	spew("$bin/tar", "#!/bin/sh\ncase \"\$2 \$*\" in '- '*'-T -') rm gone;; esac; exec /bin/tar \"\$@\"\n", 0755);
	# (Of what isn't there, all is wanted.)
	system "rm -rf '$base/differing'; mkdir '$base/differing'";
	is_deeply($pull->(localPath => "$base/differing")->{result}, { files => 1, bytes => 4 }, 'what is gone when it is wanted is');
	is(listing("$base/differing"), 'here', '... and no more');
	unlink "$bin/tar";
	spew("$bin/find", "#!/bin/sh\n[ \$2 = -prune ] && exit; printf 'f 1 1 644 1 ./%.9000d\\0d 1 1.0 755 1.0 .\\0' 1\n", 0755);
	is_deeply($pull->(localPath => "$base/differing")->{result}, { files => 1, bytes => 4 }, 'after a list that can not be read all is sent');
	spew("$bin/find", "#!/bin/sh\n[ \$2 = -prune ] && exit; exec yes \"\$(printf 'f 1 1 644 1 ./%.1000d' 1)\" | tr '\\n' '\\0'\n", 0755);
	is_error($pull->(localPath => "$base/differing", limits => { stallMs => 2000 }), '08006', qr/no progress/, 'a list without an end');
	no_process_left($host, '... leaves no process');
	spew("$bin/find", "#!/bin/sh\n[ \$2 = -prune ] && exit; printf 'f 1 1 644 1 ./here\\0'; exec sleep 60\n", 0755);
	{
		my $call = $client->send_call('environmentPullFiles', $remote->('', localPath => "$base/differing"));
		my $chooser = wait_until('it chooses', sub { (grep { slurp("/proc/$_/cmdline") =~ /^envrt_files\0choose\0/ } movers($host))[0] });

		kill 'KILL', $chooser;
		is_error($client->answer($call), '38000', qr/signal 9/, 'who chooses is killed');
		no_process_left($host, '... which leaves no process');
	}
	unlink glob "$workspace/*";

	# Whoever answers in place of tar
	unlink glob "$bin/*";
	my %archive = (
		'..' => $top_entry . entry('../out', data => 'x') . $end,
		'an absolute name' => $top_entry . entry("$outside/out", data => 'x') . $end,
		'through a link' => $top_entry . entry('s', type => '2', link => $outside) . entry('s/out', data => 'x') . $end,
		'half a file' => $top_entry . header('half', size => 1000000) . 'x' x 50000,
		'garbage' => 'x' x 5000,
		'nothing' => '');
	for my $name (sort keys %archive)
	{
		spew("$base/archive", $archive{$name});
		spew("$bin/tar", "#!/bin/sh\ncat '$base/archive'\n", 0755);
		my $answer = $pull->(localPath => "$base/hostile");

		ok($name eq 'through a link' ? $answer->{result} : $answer->{error}, "a tar that sends: $name");
		is(listing($outside), 'secret', '... nothing comes out');
		system 'rm', '-rf', "$base/hostile";
	}
	spew("$base/archive", $top_entry . entry('./f', data => 'x') . $end);
	spew("$bin/tar", "#!/bin/sh\ncat '$base/archive'; echo 'tar: ./g: File removed before we read it' >&2; exit 1\n", 0755);
	is_deeply($pull->(localPath => "$base/removed")->{result}, { files => 1, bytes => 1 }, 'what vanishes meanwhile is left out');
	spew("$bin/tar", "#!/bin/sh\n[ \"\$2\" = - ] || exit 1; cat '$base/archive'; exec cat /dev/zero\n", 0755);
	is_deeply($pull->(localPath => "$base/junk", limits => { stallMs => 1000 })->{result}, { files => 1, bytes => 1 }, 'a tar that goes on after the archive');
	spew("$bin/tar", "#!/bin/sh\nwhile echo x; do sleep 0.1; done\n", 0755);
	is_error($push->(localPath => $big, limits => { stallMs => 1000 }), '08006', qr/no progress/, 'a tar that only says that it lives');
	spew("$bin/tar", "#!/bin/sh\nexec cat >/dev/null\n", 0755);
	is_error($push->(localPath => $source), '08006', qr/not complete/, 'a tar that unpacks nothing');
	spew("$bin/tar", "#!/bin/sh\necho oops >&2; exit 7\n", 0755);
	is_error($push->(localPath => $source), '38000', qr/status 7: oops/, 'one that fails');
	is_error($pull->(localPath => "$base/none"), '38000', qr/status 7: oops/, '... either way');
	gone_or($workspace, '', 'nothing is left');
	$host->stop;
}

#######################################################################
# The bubblewrap driver
#######################################################################
if (!has_sandboxes())
{
	done_testing();
	exit;
}
require SandboxTest;
SandboxTest->import;

my $directory = temporary_directory();
my $host = start_host(sandboxes => $directory);
my $client = $host->connect;
sub transfer_params
{
	my ($id, %other) = @_;

	return sandbox_params($id, lease => { id => $id, providerLeaseId => provider_id($id) }, %other);
}

sub new_lease
{
	my (%config) = @_;
	my $id = lease_id();

	acquire($client, $id, config => \%config);
	return $id;
}

{
	my $id = new_lease();
	my $workspace = "$directory/leases/$id/workspace";
	my $result = $client->call('environmentPushFiles', transfer_params($id, localPath => $source))->{result};

	is_deeply($result, { files => 304, bytes => 45150 + 10 + 5 }, 'a push');
	is(digest($workspace), digest($source), '... brings all as it is');
	is((stat "$workspace/script")[9], (stat "$source/script")[9], '... with its time');
	$result = $client->call('environmentPullFiles', transfer_params($id, localPath => "$base/pulled"))->{result};
	is_deeply($result, { files => 304, bytes => 45165 }, 'a pull');
	is(digest("$base/pulled"), digest($source), '... brings it back');
	$result = $client->call('environmentPushFiles', transfer_params($id, localPath => "$source/script", remotePath => 'new/place/s'))->{result};
	is_deeply($result, { files => 1, bytes => 10 }, 'a push of a file');
	is(slurp("$workspace/new/place/s"), "#!/bin/sh\n", '... to a place that was not there');
	# What is there already.
	my $again = sub { return $client->call($_[0], transfer_params($id, localPath => $_[1]))->{result} };
	system 'rm', '-rf', "$workspace/new";
	is_deeply($again->('environmentPushFiles', $source), { files => 0, bytes => 0 }, 'a push of the same sends nothing');
	is_deeply($again->('environmentPullFiles', "$base/pulled"), { files => 0, bytes => 0 }, '... and so does a pull');
	spew("$source/script", "#!/bin/ks\n");
	is_deeply($again->('environmentPushFiles', $source), { files => 1, bytes => 10 }, 'what has changed is sent');
	is(digest($workspace), digest($source), '... and all is equal again');
	chmod 0755, "$workspace/deep/1";
	chmod 0600, "$workspace/deep/2";
	spew("$workspace/deep/2", 'yy');
	is_deeply($again->('environmentPullFiles', "$base/pulled"), { files => 3, bytes => 13 }, 'so it is for a pull');
	is(digest("$base/pulled"), digest($workspace), '... after which all is equal');
	spew("$source/script", "#!/bin/sh\n");
	utime 1_600_000_000, 1_600_000_000, "$source/script";
	$again->('environmentPushFiles', $source);
	is(digest($workspace), digest($source), 'what has changed back is sent, too');
	$client->call('environmentPushFiles', transfer_params($id, localPath => "$source/script", remotePath => 'new/place/s'));
	ok(-x "$workspace/new/place/s", '... as it is');
	$client->call('environmentPushFiles', transfer_params($id, localPath => "$source/script", remotePath => '/workspace/new'));
	ok(-f "$workspace/new/script", 'a push of a file into a directory');
	$client->call('environmentPullFiles', transfer_params($id, localPath => "$base/single", remotePath => 'new/script'));
	is(slurp("$base/single"), "#!/bin/sh\n", 'a pull of a file');
	mkdir "$base/pulled_into";
	$client->call('environmentPullFiles', transfer_params($id, localPath => "$base/pulled_into", remotePath => 'new/script'));
	is(listing("$base/pulled_into"), 'script', '... into a directory');
	is_deeply(execute($client, $id, [ 'sh', '-c', 'chmod -R u+w . && rm -rf /workspace/* && mkfifo pipe && touch f' ])->{exitCode}, 0, 'a workspace with a pipe');
	$result = $client->call('environmentPullFiles', transfer_params($id, localPath => "$base/no_pipe"))->{result};
	is(listing("$base/no_pipe"), 'f', '... which a pull leaves out');

	# Paths
	for my $path ('..', 'a/../../b', '/etc', '/workspace2', '/workspace/../etc', '/')
	{
		is_error($client->call('environmentPushFiles', transfer_params($id, localPath => $source, remotePath => $path)),
			'22023', qr/leads out of the workspace/, "the remote path \"$path\"");
	}
	is_error($client->call('environmentPushFiles', transfer_params($id, localPath => 'relative')), '22023', qr/localPath must be an absolute/, 'a relative local path');
	is_error($client->call('environmentPushFiles', transfer_params($id)), '22023', qr/localPath/, 'none');
	is_error($client->call('environmentPushFiles', transfer_params($id, localPath => "$base/missing")), '58P01', qr/missing/, 'one that is not there');
	is_error($client->call('environmentPullFiles', transfer_params($id, localPath => "$base/missing/too")), '58P01', qr/missing/, 'one in what is not there');
	is_error($client->call('environmentPullFiles', transfer_params($id, localPath => "$base/pulled", remotePath => 'missing')), '58P01', qr/missing/, 'a remote path that is not there');
	symlink '/etc', "$workspace/etc";
	symlink $outside, "$workspace/link";
	is_error($client->call('environmentPullFiles', transfer_params($id, localPath => "$base/pulled2", remotePath => 'etc/passwd')), '22023', qr/no directory/, 'a remote path through a link');
	is_error($client->call('environmentPullFiles', transfer_params($id, localPath => "$base/pulled2", remotePath => 'etc')), '22023', qr/is a link/, '... and a link itself');
	is_error($client->call('environmentPushFiles', transfer_params($id, localPath => $source, remotePath => 'link/x')), '22023', qr/no directory/, '... for a push, too');
	is(listing($outside), 'secret', '... which makes nothing there');
	is_error($client->call('environmentPushFiles', transfer_params($id, localPath => $source, protectedPaths => ["$source/deep"])), '42501', qr/server itself/, 'what is protected');
	is_error($client->call('environmentPushFiles', transfer_params(lease_id(), localPath => $source)), '55000', qr/is gone/, 'a lease that is none');
}

# A git working tree: its state travels with its files, and of its objects those that are new.
SKIP:
{
	skip 'there is no git here', 1 if system('git --version >/dev/null 2>&1') != 0;
	my $id = new_lease();
	my $workspace = "$directory/leases/$id/workspace";
	my $tree = "$base/tree";
	my $git = "git -C '$tree' -c user.name=a -c user.email=a\@example.com";
	my $in_sandbox = sub { return execute($client, $id, [ 'git', @_ ])->{stdout} };
	my $push = sub { return $client->call('environmentPushFiles', transfer_params($id, localPath => $tree))->{result} };

	system "git init -q '$tree' && head -c 3000000 /dev/urandom >'$tree/large' && echo one >'$tree/tracked' && $git add . && $git commit -qm one && $git gc -q";
	utime 1_600_000_000, 1_600_000_000, split /\0/, `find '$tree' -type f -print0`;
	spew("$tree/tracked", 'changed');
	spew("$tree/untracked", 'new');
	cmp_ok($push->()->{bytes}, '>', 6_000_000, 'a git working tree');
	is($in_sandbox->('status', '--porcelain'), " M tracked\n?? untracked\n", '... has its state in the sandbox');
	is($in_sandbox->('log', '--format=%s'), "one\n", '... and its history');
	is(execute($client, $id, [ 'git', 'fsck', '--strict' ])->{exitCode}, 0, '... complete');
	system "$git commit -qam two";
	cmp_ok($push->()->{bytes}, '<', 100_000, 'a commit later only what is new is sent');
	is($in_sandbox->('status', '--porcelain'), "?? untracked\n", '... with its state');
	is($in_sandbox->('log', '--format=%s'), "two\none\n", '... and history');
	is(execute($client, $id, [ 'git', 'fsck', '--strict' ])->{exitCode}, 0, '... complete');
	execute($client, $id, [ 'sh', '-c', 'git config core.fsmonitor false; git config user.name a; git config user.email a@b; echo x >>tracked; git commit -qam three; echo dirty >>tracked; echo "#!/bin/sh" >.git/hooks/pre-commit; mkdir -p .git/modules/m sub/.git/hooks; touch .git/modules/m/config sub/.git/config sub/.git/hooks/x sub/.git/HEAD' ]);
	my $pulled = $client->call('environmentPullFiles', transfer_params($id, localPath => $tree))->{result};
	cmp_ok($pulled->{bytes}, '<', 100_000, 'a pull brings only what is new');
	is(`$git log --format=%s`, "three\ntwo\none\n", '... the commit');
	is(`$git status --porcelain`, " M tracked\n?? untracked\n", '... and the state');
	unlike(slurp("$tree/.git/config"), qr/fsmonitor/, '... but nothing that runs programs');
	ok(!-e "$tree/.git/hooks/pre-commit" && !-e "$tree/.git/modules/m/config" && !-e "$tree/sub/.git/config" && !-e "$tree/sub/.git/hooks/x", '... wherever it is');
	ok(-e "$tree/sub/.git/HEAD", '... while the rest is there');
	# git gc packs branches, which the files that the other side still has must not hide.
	execute($client, $id, [ 'sh', '-c', 'git commit -qam four && git branch mine && git gc -q && git commit -q --allow-empty -m five && git branch other' ]);
	system "$git branch ours";
	$client->call('environmentPullFiles', transfer_params($id, localPath => $tree));
	is(`$git log -1 --format=%s; $git log -1 --format=%s mine; $git log -1 --format=%s other; $git log -1 --format=%s ours`, "five\nfour\nfive\nthree\n", 'a pull of what was packed, and then went on');
	execute($client, $id, [ 'sh', '-c', 'git commit -q --allow-empty -m six && git pack-refs --all' ]);
	$client->call('environmentPullFiles', transfer_params($id, localPath => $tree));
	is(`$git log -1 --format=%s; $git log -1 --format=%s ours`, "six\nthree\n", '... and was packed again');
	system "$git commit -q --allow-empty -m seven";
	$push->();
	is($in_sandbox->('log', '-1', '--format=%s'), "seven\n", '... a push that goes on');
	system "$git commit -q --allow-empty -m eight && $git pack-refs --all";
	$push->();
	is($in_sandbox->('log', '-1', '--format=%s'), "eight\n", '... and one of what was packed');
	is($in_sandbox->('log', '-1', '--format=%s', 'other'), "five\n", '... without a loss');
}

# Limits of the sandbox
{
	my $id = new_lease();

	system 'truncate', '-s', '30M', "$base/large";
	is_error($client->call('environmentPushFiles', transfer_params($id, localPath => "$base/large", config => { maxFileMb => 20 })),
		'53400', qr/File too large/, 'a file that is larger than maxFileMb');
	is(listing("$directory/leases/$id/workspace"), '', '... leaves nothing');
	mkdir "$base/many";
	# (So much that it is seen on the way; of zeros nothing is on the disk.)
	system "head -c 10000000 /dev/urandom > '$base/many/1'";
	system "cp '$base/many/1' '$base/many/$_'" for 2 .. 50;
	is_error($client->call('environmentPushFiles', transfer_params($id, localPath => "$base/many", config => { workspaceMb => 16 })),
		'53400', qr/workspaceMb|File too large/, 'more than workspaceMb');
	no_process_left($host, 'no process is left');
}

# Ended half-way
sub half_way
{
	my ($name, $method, $id, $end) = @_;
	my $other = $host->connect;
	my $call = $other->send_call($method, transfer_params($id, localPath => "$base/endless"));

	wait_until('something was moved', sub { grep { $_->{bytes} > 1_000_000 } @{ $host->stats->{transfers} } });
	my ($row) = @{ $host->stats->{transfers} };
	is($row->{leaseId}, $id, "$name: it is in the statistics");
	is($row->{direction}, $method =~ /Push/ ? 'push' : 'pull', '... with its direction');
	$end->($other, $call);
	no_process_left($host, "$name: no process is left");
	return;
}

{
	my $id = new_lease();
	my $workspace = "$directory/leases/$id/workspace";
	my $cancel = sub {
		my ($other, $call) = @_;

		is($other->call('envrt/cancel', { id => $call })->{result}, undef, 'a cancel');
		is_error($other->answer($call), '57014', qr/cancelled/, '... ends the call');
	};
	my $leave = sub { $_[0]->close };

	endless_file("$base/endless");
	half_way('push, cancelled', 'environmentPushFiles', $id, $cancel);
	half_way('push, left', 'environmentPushFiles', $id, $leave);
	is(listing($workspace), '', 'no half file is left');
	unlink "$base/endless";
	endless_file("$workspace/endless");
	half_way('pull, cancelled', 'environmentPullFiles', $id, $cancel);
	half_way('pull, left', 'environmentPullFiles', $id, $leave);
	is(listing("$base/endless"), '', 'no half file is left');
	half_way('the lease ends', 'environmentPullFiles', $id,
		sub {
			my ($other, $call) = @_;

			$client->call('environmentDestroyLease', sandbox_params($id, providerLeaseId => provider_id($id)));
			is_error($other->answer($call), '55000', qr/ended meanwhile/, 'the end of the lease ends it');
		});
	is_deeply([ grep { /\Q$id/ } in_use($directory) ], [], '... and the folder goes');
}

# Whose ends die, or stop
for my $case ([ 'KILL', '38000', qr/signal 9/ ], [ 'STOP', '08006', qr/no progress/ ])
{
	my ($signal, $state, $text) = @$case;
	my $id = new_lease();
	my $call;

	rmdir "$base/endless";
	endless_file("$base/endless");
	$call = $client->send_call('environmentPushFiles', transfer_params($id, localPath => "$base/endless", limits => { stallMs => 1000 }));
	wait_until('something was moved', sub { grep { $_->{bytes} > 1_000_000 } @{ $host->stats->{transfers} } });
	kill $signal, grep { slurp("/proc/$_/cmdline") =~ /^envrt_files\0pack/ } children_of($host->{pid});
	is_error($client->answer($call), $state, $text, "SIG$signal for the end on the server");
	no_process_left($host, '... leaves no process');
	is(listing("$directory/leases/$id/workspace"), '', '... and no file');
}

# Links that come and go while files are pushed
{
	my $id = new_lease();
	my $busy = $host->connect;
	$busy->send_call('environmentExecute',
		sandbox_params($id, lease => { providerLeaseId => provider_id($id), metadata => {} }, command => 'sh', timeoutMs => 60000,
			args => [ '-c', "while :; do rm -rf deep empty; ln -s $outside deep; ln -s $outside empty; rm -f deep; mkdir deep 2>/dev/null; done" ]));

	my %ended;
	for my $round (1 .. 20)
	{
		for my $answer ($client->call('environmentPushFiles', transfer_params($id, localPath => $source)),
			$client->call('environmentPullFiles', transfer_params($id, localPath => "$base/busy")))
		{
			$ended{$answer->{error} ? $answer->{error}{data}{sqlstate} : 'complete'}++;
		}
	}
	# What is taken away while it is entered is an error, and nothing else is.
	is_deeply([ grep { !/^(?:complete|58P01|58030|55000)$/ } keys %ended ], [], 'transfers while links come and go') or diag(explain \%ended);
	cmp_ok($ended{complete} // 0, '>', 0, '... which are not always hindered');
	note(explain \%ended);
	$busy->close;
	is(listing($outside), 'secret', 'links in the workspace lead nowhere, whenever they are made');
	ok(!grep({ !-l "$base/busy/$_" && -e "$base/busy/$_/secret" } qw(deep empty)), '... in either direction');
}

# The host dies
{
	my $id = new_lease();
	my $workspace = "$directory/leases/$id/workspace";
	my $call = $client->send_call('environmentPushFiles', transfer_params($id, localPath => "$base/endless"));

	wait_until('something was moved', sub { grep { $_->{bytes} > 1_000_000 } @{ $host->stats->{transfers} } });
	my @pids = grep { slurp("/proc/$_/cmdline") =~ /^(?:envrt_files|bwrap)\0/ } children_of($host->{pid});
	is(scalar @pids, 2, 'two processes');
	kill 'KILL', $host->{pid};
	wait_until('they are gone', sub { !grep { kill 0, $_ } @pids });
	is(listing($workspace), '', 'when the host is killed no half file is left');
}

done_testing();
