/*
 * manifest_program.c
 *		A manifest that is a JavaScript module: node is asked what it says.
 *
 * The SDK's tools compile a plugin's manifest to a module whose default export
 * is the manifest.  To read it is to run it, which is done in a process of its
 * own that has nothing of ours (worker_process.c) and a short time: it imports
 * the module and prints its default export as JSON.  What the module itself
 * prints comes before that, so the last line counts.  How long a line and all
 * of them may be is limited.
 */
#include <stdlib.h>
#include <string.h>

#include "plugins/manifest_program.h"
#include "base/memory.h"
#include "plugins/plugin_manifest.h"
#include "base/timer.h"
#include "plugins/worker_process.h"

#define LIMIT_MS 15000
#define MAX_OUTPUT (4 * PLUGIN_MANIFEST_MAX)

/* A module of the older kind has its exports in its default export. */
static const char importer[] =
    "const { pathToFileURL } = await import('node:url');\n"
    "const module = await import(pathToFileURL(process.argv[1]).href);\n"
    "let manifest = module.default ?? module.manifest;\n"
    "if (manifest && manifest.id === undefined) manifest = manifest.default ?? manifest.manifest;\n"
    "if (!manifest) throw new Error('the module has no default export');\n"
    "process.stdout.write('\\n' + JSON.stringify(manifest) + '\\n', () => process.exit(0));\n";

struct ManifestProgram
{
	WorkerProcess *process;
	Timer *limit;
	Timer *soon; /* for what could not be started */
	ManifestProgramEnded ended;
	void *data;
	char *text;
	size_t length;
	size_t printed;
	char *problem;
	char *words; /* the end of its stderr */
};

static void
program_free(ManifestProgram *program)
{
	timer_stop(&program->limit);
	timer_stop(&program->soon);
	free(program->text);
	free(program->problem);
	free(program->words);
	free(program);
}

static void
tell(void *data)
{
	ManifestProgram *program = data;

	program->ended(program->data, program->problem ? NULL : program->text, program->length,
	               program->problem, program->words ? program->words : "");
	program_free(program);
}

static void
line_came(void *owner, const char *line, size_t length)
{
	ManifestProgram *program = owner;

	program->printed += length;
	if (length > PLUGIN_MANIFEST_MAX || program->printed > MAX_OUTPUT)
	{
		worker_process_kill(program->process, "printed too much");
		return;
	}
	free(program->text);
	program->text = xstrndup(line, length);
	program->length = length;
}

static void
manifest_program_process_drained(void *owner)
{
	(void) owner;
}

static void
manifest_program_process_ended(void *owner, const char *how)
{
	ManifestProgram *program = owner;

	program->words = worker_process_stderr(program->process, NULL, NULL);
	program->process = NULL;
	if (strcmp(how, "exited with status 0") != 0)
		program->problem = xformat("node, which was to run its manifest, %s", how);
	else if (program->text == NULL)
		program->problem = xformat("its manifest says nothing");
	tell(program);
}

static void
overdue(void *data)
{
	ManifestProgram *program = data;

	worker_process_kill(program->process, "did not end in time");
}

ManifestProgram *
manifest_program_start(const char *folder, const char *script, ManifestProgramEnded ended,
                       void *data)
{
	static const WorkerProcessEvents events = {
	    .line = line_came,
	    .drained = manifest_program_process_drained,
	    .ended = manifest_program_process_ended,
	};
	const WorkerProgram node = {
	    .folder = folder,
	    .plugin = "",
	    .arguments = {"node", "--input-type=module", "--eval", importer, script},
	};
	ManifestProgram *program = xcalloc(1, sizeof *program);
	char *problem = NULL;

	program->ended = ended;
	program->data = data;
	program->process = worker_process_start(&node, &events, program, &problem);
	if (program->process != NULL)
		timer_start(&program->limit, LIMIT_MS, overdue, program);
	else
	{
		program->problem = xformat("node, which was to run its manifest, %s", problem);
		free(problem);
		timer_start(&program->soon, 0, tell, program);
	}
	return program;
}

void
manifest_program_forget(ManifestProgram *program)
{
	if (program->process != NULL)
		worker_process_dismiss(program->process);
	program_free(program);
}
