# The plugin that writes down what it is asked and answers what it is told (test/plugins/recorder).
#
#   my $node = new_cluster('main', conf => EnvrtProvider::conf());
#   my $recorder = EnvrtRecorder->new($node, $company);
#   my $environment = $recorder->sandbox(image => 'x');
#   $recorder->answer(environmentProbe => { ok => JSON::PP::false });
#   is_deeply([ $recorder->calls ], [ [ environmentProbe => {...} ] ]);

package EnvrtRecorder;

use strict;
use warnings;

use EnvrtFixture qw(temporary_directory slurp spew);
use EnvrtTest;

my $serial = 0;

# With answers by method.
sub new
{
	my ($class, $node, $company, %answers) = @_;
	my $self = bless { node => $node, company => $company, directory => temporary_directory() . '/recorder-' . ++$serial }, $class;

	for my $directory ($self->{directory}, "$self->{directory}/answers")
	{
		mkdir $directory or die "$directory: $!";
	}
	$self->answer($_, $answers{$_}) for keys %answers;
	return $self;
}

# From now on; undef: what a well-behaved plugin says.
sub answer
{
	my ($self, $method, $answer) = @_;
	my $file = "$self->{directory}/answers/$method";

	if (defined $answer) { spew($file, to_json($answer)) }
	else { unlink $file }
	return;
}

# What the plugin was asked since the last time, as [method, params].
sub calls
{
	my ($self) = @_;
	my $file = "$self->{directory}/calls";

	return if !-e $file;
	my @calls = map { [ @{ from_json($_) }{qw(method params)} ] } split /\n/, slurp($file);
	unlink $file;
	return @calls;
}

sub sandbox_config
{
	my ($self, %config) = @_;

	return { provider => 'recorder', directory => $self->{directory}, %config };
}

sub driver_config
{
	my ($self, %config) = @_;

	return { pluginKey => 'envrt.recorder', driverKey => 'recorder-env', driverConfig => { directory => $self->{directory}, %config } };
}

# Environments by a plain INSERT, which nobody validates.
sub sandbox
{
	my ($self, %config) = @_;

	return make_environment(@$self{qw(node company)}, 'sandbox', $self->sandbox_config(%config));
}

sub of_driver
{
	my ($self, %config) = @_;

	return make_environment(@$self{qw(node company)}, 'plugin', $self->driver_config(%config));
}

1;
