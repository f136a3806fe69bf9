#!/usr/bin/perl
# tools/check-documents says what is wrong in a tree that somebody has broken.

use strict;
use warnings;

use File::Basename;
use File::Temp;
use Test::More;

my $copy = File::Temp->newdir;

sub slurp
{
	open my $file, '<', $_[0] or die "can't read $_[0]: $!";
	local $/;
	return scalar <$file>;
}

sub spew
{
	open my $file, '>', $_[0] or die "can't write $_[0]: $!";
	print $file $_[1];
	close $file or die "can't write $_[0]: $!";
}

# What check-documents says of the copy.  Where nothing that make reads was changed, it is given what make
# has said before: that takes most of the time.
sub check
{
	my ($ask_make) = @_;
	my $make = $ask_make ? 'make' : "sh -c 'cat said' sh";
	my $output = `cd $copy && tools/check-documents --make "$make" 2>&1`;

	return ($? >> 8, $output);
}

# Does something to the copy, looks, and takes it back.
sub broken
{
	my ($name, $break, $mend, $expected, %options) = @_;

	$break->();
	my ($status, $output) = check($options{ask_make});
	is($status, 1, "$name: refused");
	like($output, $expected, "$name: ... and told");
	$mend->();
}

# With one file changed, or made: the change is given the text and returns another one.
sub changed
{
	my ($name, $path, $change, $expected) = @_;
	my $file = "$copy/$path";
	my $before = -e $file ? slurp($file) : undef;
	my $after = $change->($before // '');

	die "$name: nothing would be changed\n" if $after eq ($before // '');
	broken(
		$name,
		sub { spew($file, $after) },
		sub { defined $before ? spew($file, $before) : unlink $file },
		$expected,
		ask_make => $path =~ /(?:Makefile|\.mk)$/ || !defined $before);
}

sub without
{
	my ($pattern) = @_;

	return sub { $_[0] =~ s/$pattern//r };
}

# A file under another name
sub moved
{
	my ($name, $from, $to, $expected) = @_;

	broken(
		$name,
		sub { rename "$copy/$from", "$copy/$to" or die "can't rename $from: $!" },
		sub { rename "$copy/$to", "$copy/$from" or die "can't rename $to: $!" },
		$expected);
}

my $append = sub { my $text = shift; return sub { $_[0] . $text } };

for my $path (qw(Makefile envrt.control sql src test expected docs tools examples LICENSE), glob '*.md')
{
	system('cp', '-a', $path, $copy) == 0 or die "can't copy $path: status $?";
}
# As tools/check-documents asks it.
delete @ENV{qw(MAKEFLAGS MAKELEVEL)};
my ($question) = slurp('tools/check-documents') =~ /`\$make (--dry-run [^`]*)`/ or die 'make is not asked';
my ($targets) = slurp('tools/check-documents') =~ /targets = '([^']*)'/ or die 'make is not asked for targets';
$question =~ s/\$targets/$targets/;
system("cd $copy && make $question >said") == 0 or die "make: status $?";
my ($status, $output) = check();
is($status, 0, 'the tree as it is') or diag($output);

# 1. Tests
changed('a regression test without expected output', 'test/sql/new.sql', $append->("SELECT 1;\n"),
	qr{^test/sql/new\.sql: has no expected output$}m);
changed('expected output of no test', 'expected/old.out', $append->("SELECT 1;\n"),
	qr{^expected/old\.out: no test has this output$}m);
changed('a regression test that is left out', 'Makefile', sub { $_[0] =~ s/filter-out /filter-out leases /r },
	qr{^test/sql/leases\.sql: no target of the makefiles runs it$}m);
changed('isolation tests that are left out', 'Makefile', without(qr/^ISOLATION = .*\n/m),
	qr{^test/specs/one_lease\.spec: no target of the makefiles runs it$}m);
changed('TAP tests that are left out', 'Makefile', sub { $_[0] =~ s{test/t/\*\.pl}{test/t/00*.pl}r },
	qr{^test/t/011_\w+\.pl: no target of the makefiles runs it$}m);
changed('TAP tests that the test run leaves out', 'test/lib/all.sh', sub { $_[0] =~ s{test/t/\*\.pl}{test/t/0*.pl}r },
	qr{^test/lib/all\.sh: does not run test/t/\*\.pl$}m);
changed('tests of the host that are left out', 'test/host/host.mk', sub { $_[0] =~ s{test/host/\*\.t}{test/host/s*.t}gr },
	qr{^test/host/files\.t: no target of the makefiles runs it$}m);
changed('a script that no rule names', 'test/host/new_load.pl', $append->("#!/usr/bin/perl\n"),
	qr{^test/host/new_load\.pl: no target of the makefiles runs it$}m);
changed('a unit test that no rule compiles', 'test/common/config_test.c', $append->("int main(void) { return 0; }\n"),
	qr{^test/common/config_test\.c: no rule of the makefiles compiles it$}m);
changed('a unit test that is compiled, but not run', 'test/tests.mk',
	sub { $_[0] =~ s/(?<=PROVE_FLAGS\) )\$\(COMMON_TESTS\)/\$(filter-out build\/test_target,\$(COMMON_TESTS))/r },
	qr{^test/common/test_target\.c: no target of the makefiles runs it$}m);
changed('a fuzz target that is left out', 'test/tests.mk',
	sub { $_[0] =~ s/for fuzzer in \$\(FUZZERS\)/for fuzzer in build\/fuzz_config/r },
	qr{^test/fuzz/fuzz_manifest\.c: no target of the makefiles runs it$}m);
changed('words for no fuzz target', 'test/fuzz/fuzz_old.dict', $append->("\"x\"\n"),
	qr{^test/fuzz/fuzz_old\.dict: no fuzz target uses it$}m);
changed('a file with another ending', 'test/t/037_new.perl', $append->("1;\n"),
	qr{^test/t/037_new\.perl: is no test, and no helper of tests$}m);
changed('a helper that nobody uses', 'test/lib/Envrt' . 'Old.pm', $append->("1;\n"),
	qr{^test/lib/Envrt[O]ld\.pm: nothing names it$}m);
broken(
	'a test that can not be executed',
	sub { chmod 0644, "$copy/test/host/ssh.t" or die },
	sub { chmod 0755, "$copy/test/host/ssh.t" or die },
	qr{^test/host/ssh\.t: can't be executed$}m);
my ($second, $third) = map { s{^\Q$copy\E/}{}r } glob "$copy/test/t/002_* $copy/test/t/003_*";
moved('a gap in the numbers', $second, $second =~ s/002/099/r, qr{^\Q$third\E: comes after number 001: a number is missing$}m);
moved('a number twice', $third, $third =~ s/003/002/r, qr{^test/t/002_\w+\.pl: another test has this number, too$}m);

# 2. The map of the tests
changed('a test that the map does not name', 'docs/testing.md', without(qr/^\| `bad_worlds\.t`.*\n/m),
	qr{^docs/testing\.md: no table has test/host/bad_worlds\.t in its first column$}m);
changed('a test that the map alone has', 'docs/testing.md', $append->("`099_nothing` and `old.t`\n"),
	qr{^docs/testing\.md: there is no test 099_nothing\n.*there is no test old\.t$}m);

changed('a helper that the map does not name', 'docs/testing.md', sub { $_[0] =~ s/`SandboxTest\.pm`/it/r },
	qr{^docs/testing\.md: does not name test/host/SandboxTest\.pm$}m);

# 3. Functions, views, settings
changed('a function that no document has', 'README.md', without(qr/^\| `envrt_retry_cleanup.*\n/m),
	qr{^function envrt_retry_cleanup\(lease_id\): in no document with its arguments$}m);
changed('an argument that no document has', 'sql/envrt.sql',
	sub { $_[0] =~ s/(?<=FUNCTION \@extschema\@\.envrt_retry_cleanup\(lease_id uuid)/, patience interval/r },
	qr{^function envrt_retry_cleanup\(lease_id, patience\): in no document with its arguments$}m);
changed('a setting that no document has', 'README.md', without(qr/^\| `envrt\.max_pull`.*\n/m),
	qr{^setting envrt\.max_pull: in the first column of no table of a document$}m);
changed('a view that no document has', 'docs/views.md', without(qr/^## `envrt\.stat_calls`\n/m),
	qr{^view envrt\.stat_calls: no document has a section about it$}m);
changed('a column that no document has', 'sql/envrt.sql',
	sub { $_[0] =~ s/(CREATE VIEW envrt\.stat_sandboxes AS\s+SELECT [^;]*?commands), /$1, commands * 2 AS twice, /r },
	qr{^docs/views\.md: the section about envrt\.stat_sandboxes does not list the column twice$}m);
changed('a column that a document alone has', 'docs/views.md',
	sub { $_[0] =~ s/^(\| `image`)/| `colour` | text | its colour |\n$1/mr },
	qr{^docs/views\.md: envrt\.stat_sandboxes has no column colour$}m);
changed('a fault point that no document has', 'src/ext/leases/leases.c',
	sub { $_[0] =~ s/FAULT_POINT\("renew-after-update"\)/FAULT_POINT("renew-at-last")/r },
	qr{^docs/testing\.md: does not name the fault point renew-at-last of src/ext/leases/leases\.c$}m);
changed('a function that a document alone has', 'README.md', $append->("`envrt_fly(lease_id)`\n"),
	qr{^README\.md: there is no envrt_fly$}m);
changed('a setting that a document alone has', 'CONTRIBUTING.md', $append->("Set `envrt.colour`.\n"),
	qr{^CONTRIBUTING\.md: there is no envrt\.colour$}m);

# 4. Files
changed('a link to nothing', 'docs/views.md', $append->("[more](more.md)\n"),
	qr{^docs/views\.md: links to more\.md, which does not exist$}m);
changed('a link to a heading that is gone', 'docs/testing.md', without(qr/^## Fault points\n/m),
	qr{^docs/views\.md: links to testing\.md#fault-points, where there is no such heading$}m);
changed('a path of nothing', 'CONTRIBUTING.md', $append->("It is in `src/ext/nowhere.c`.\n"),
	qr{^CONTRIBUTING\.md: there is no src/ext/nowhere\.c$}m);
changed('a path of nothing in a comment', 'src/ext/base/timer.c', $append->("/* See src/host/nowhere.c. */\n"),
	qr{^src/ext/base/timer\.c: there is no src/host/nowhere\.c$}m);
changed('a path of nothing in a script', 'test/valgrind', sub { $_[0] =~ s/017_execute/017_executes/r },
	qr{^test/valgrind: there is no test/t/\{017_executes,}m);

# 5. Functions in C
changed('a function that a document alone has', 'src/host/ssh/README.md', $append->("`ssh_fly()` flies.\n"),
	qr{^src/host/ssh/README\.md: there is no function ssh_fly\(\)$}m);
changed('a function that the code has no more', 'src/ext/ledger/settle.c', sub { $_[0] =~ s/\bdecide\(/decide_row(/gr },
	qr{^docs/architecture\.md: there is no function decide\(\)$}m);
changed('a function that is named with another file', 'docs/architecture.md',
	sub { $_[0] =~ s{(`write_not_done\(\)` in `)scheduler/cleanup_outcome\.c}{$1scheduler/cleanup.c}r },
	qr{^docs/architecture\.md: scheduler/cleanup\.c does not define write_not_done\(\)$}m);
changed('a function that has moved to another file', 'src/ext/scheduler/cleanup_take.c',
	sub { $_[0] =~ s/^take\(List/cleanup_take_rows(List/mr },
	qr{^src/ext/ledger/README\.md: scheduler/cleanup_take\.c does not define take\(\)$}m);
changed('a file of the code that is gone', 'src/ext/ledger/README.md', $append->("It is in `unsettle.c`.\n"),
	qr{^src/ext/ledger/README\.md: there is no unsettle\.c$}m);

done_testing();
