/*
 * plugin_state.c
 *		What plugins want to remember.
 *
 * A plugin's state is a map from keys (of four parts, as the SDK has them) to
 * JSON values, in one file, DATA/pg_envrt/plugin_state/KEY.json, that is read
 * when the plugin first asks and kept in memory.  A change is answered when it
 * is on disk: the whole map is written to another file, flushed, and renamed,
 * in a thread, since disks can be slow.  Changes that come meanwhile wait for
 * the next writing, together.  When a writing fails, those who wait for it are
 * told, and so are those behind it, and the map is read again when it is next
 * needed: what could not be stored is not remembered either.
 *
 * Size is limited, since a map is written as a whole and a plugin's state is
 * the data directory's.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <uv.h>

#include "base/memory.h"
#include "plugins/plugin_state.h"
#include "shared/protocol.h"
#include "base/timer.h"

#define DIRECTORY "plugin_state"
#define MAX_STATE (1024 * 1024)
#define MAX_PART 500
#define MAX_WAITING 1000

typedef struct Waiter
{
	struct Waiter *next;
	PluginStateStored stored;
	void *data;
	const char *problem;
} Waiter;

typedef struct Waiters
{
	Waiter *first;
	Waiter *last;
	size_t count;
} Waiters;

/* A thread's work. */
typedef struct Writing
{
	uv_work_t work;
	PluginState *state;
	char *directory;
	char *path;
	char *text;
	int error;
} Writing;

struct PluginState
{
	PluginState *next;
	int references;
	char *plugin;
	json_t *map;     /* NULL: not read, or to be read again */
	size_t size;     /* as written, about */
	Waiters waiting; /* for the next writing */
	Waiters writing; /* for the one under way */
	Waiters refused; /* to be told why not */
	Timer *tell;
	bool busy;
};

static char *directory;
static PluginState *first_state;
static size_t writing_count;

static const char no_place[] = "There is no place to keep state";
static const char bad_key[] = "State key must have a scopeKind and a stateKey";
static const char not_read[] = "State could not be read";
static const char not_stored[] = "State could not be stored";
static const char too_large[] = "State of the plugin would be larger than 1 MiB";
static const char too_many[] = "Too many changes of state are on their way";

void
plugin_state_set_directory(const char *data_directory)
{
	free(directory);
	directory = xformat("%s/%s/%s", data_directory, ENVRT_DIRECTORY, DIRECTORY);
}

/*
 * Those who wait
 */

static void
waiters_add(Waiters *waiters, PluginStateStored stored, void *data, const char *problem)
{
	Waiter *waiter = xcalloc(1, sizeof *waiter);

	waiter->stored = stored;
	waiter->data = data;
	waiter->problem = problem;
	if (waiters->last != NULL)
		waiters->last->next = waiter;
	else
		waiters->first = waiter;
	waiters->last = waiter;
	waiters->count++;
}

/* problem: of all of them, unless each has its own. */
static void
waiters_tell(Waiters *waiters, const char *problem)
{
	Waiter *waiter = waiters->first;

	memset(waiters, 0, sizeof *waiters);
	while (waiter != NULL)
	{
		Waiter *next = waiter->next;

		waiter->stored(waiter->data, problem ? problem : waiter->problem);
		free(waiter);
		waiter = next;
	}
}

/*
 * States
 */

PluginState *
plugin_state_open(const char *plugin)
{
	PluginState *state = first_state;

	while (state != NULL && strcmp(state->plugin, plugin) != 0)
		state = state->next;
	if (state == NULL)
	{
		state = xcalloc(1, sizeof *state);
		state->plugin = xstrdup(plugin);
		state->next = first_state;
		first_state = state;
	}
	state->references++;
	return state;
}

void
plugin_state_release(PluginState *state)
{
	PluginState **link = &first_state;

	if (--state->references > 0)
		return;
	while (*link != state)
		link = &(*link)->next;
	*link = state->next;
	timer_stop(&state->tell);
	json_decref(state->map);
	free(state->plugin);
	free(state);
}

/*
 * Reading
 */

/* The map; NULL with *problem set. */
static json_t *
load(PluginState *state, const char **problem)
{
	char *path;
	json_t *map = NULL;
	struct stat about;
	int fd;

	if (state->map != NULL)
		return state->map;
	if (directory == NULL)
	{
		*problem = no_place;
		return NULL;
	}
	path = xformat("%s/%s.json", directory, state->plugin);
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
	if (fd < 0 && errno == ENOENT)
	{
		map = json_object();
		state->size = 0;
	}
	else if (fd >= 0 && fstat(fd, &about) == 0 && S_ISREG(about.st_mode) &&
	         about.st_size <= 2 * MAX_STATE)
	{
		map = json_loadfd(fd, JSON_ALLOW_NUL, NULL);
		state->size = (size_t) about.st_size;
	}
	if (fd >= 0)
		close(fd);
	free(path);
	if (!json_is_object(map))
	{
		json_decref(map);
		*problem = not_read;
		return NULL;
	}
	return state->map = map;
}

/* A part of a key: a text of limited size; absent and null are the same. */
static bool
take_part(json_t *key, const json_t *value, const char *otherwise)
{
	if (value == NULL || json_is_null(value))
	{
		json_array_append_new(key, otherwise ? json_string(otherwise) : json_null());
		return true;
	}
	if (!json_is_string(value) || json_string_length(value) > MAX_PART)
		return false;
	json_array_append(key, (json_t *) value);
	return true;
}

/* The four parts as one text, to be freed; NULL when they are no key. */
static char *
key_of(const json_t *params)
{
	const json_t *kind = json_object_get(params, "scopeKind");
	const json_t *name = json_object_get(params, "stateKey");
	json_t *key = json_array();
	char *text = NULL;

	if (json_is_string(kind) && json_is_string(name) && take_part(key, kind, NULL) &&
	    take_part(key, json_object_get(params, "scopeId"), NULL) &&
	    take_part(key, json_object_get(params, "namespace"), "default") &&
	    take_part(key, name, NULL))
		text = json_dumps(key, JSON_COMPACT);
	json_decref(key);
	return text;
}

json_t *
plugin_state_get(PluginState *state, const json_t *params, const char **problem)
{
	char *key = key_of(params);
	json_t *map = NULL;
	json_t *value = NULL;

	*problem = key == NULL ? bad_key : NULL;
	if (key != NULL)
		map = load(state, problem);
	if (map != NULL)
		value = json_object_get(map, key);
	free(key);
	return value;
}

/*
 * Writing
 */

static int
plugin_state_write_all(int fd, const char *text)
{
	size_t left = strlen(text);

	while (left > 0)
	{
		ssize_t count = write(fd, text, left);

		if (count < 0 && errno != EINTR)
			return -1;
		if (count > 0)
		{
			text += count;
			left -= (size_t) count;
		}
	}
	return 0;
}

static int
flush_directory(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_DIRECTORY);
	int result = fd < 0 ? -1 : fsync(fd);

	if (fd >= 0)
		close(fd);
	return result;
}

/* In a thread. */
static void
write_file(uv_work_t *work)
{
	Writing *writing = work->data;
	char *temporary = xformat("%s.new", writing->path);
	int fd = -1;
	bool done;

	if (mkdir(writing->directory, 0700) == 0 || errno == EEXIST)
		fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	done = fd >= 0 && plugin_state_write_all(fd, writing->text) == 0 && fsync(fd) == 0;
	if (!done)
		writing->error = errno;
	if (fd >= 0 && close(fd) < 0 && done)
	{
		writing->error = errno;
		done = false;
	}
	if (done && (rename(temporary, writing->path) < 0 || flush_directory(writing->directory) < 0))
		writing->error = errno;
	free(temporary);
}

static void begin_writing(PluginState *state);

static void
plugin_state_written(uv_work_t *work, int status)
{
	Writing *writing = work->data;
	PluginState *state = writing->state;
	bool failed = status < 0 || writing->error != 0;

	writing_count--;
	state->busy = false;
	if (failed)
	{
		json_decref(state->map);
		state->map = NULL;
		waiters_tell(&state->writing, not_stored);
		waiters_tell(&state->waiting, not_stored);
	}
	else
		waiters_tell(&state->writing, NULL);
	if (state->waiting.first != NULL && !state->busy)
		begin_writing(state);
	free(writing->directory);
	free(writing->path);
	secret_free(writing->text);
	free(writing);
	plugin_state_release(state);
}

static void
begin_writing(PluginState *state)
{
	Writing *writing = xcalloc(1, sizeof *writing);

	writing->work.data = writing;
	writing->state = state;
	writing->directory = xstrdup(directory);
	writing->path = xformat("%s/%s.json", directory, state->plugin);
	writing->text = json_dumps(state->map, JSON_COMPACT | JSON_SORT_KEYS);
	state->references++;
	state->busy = true;
	state->writing = state->waiting;
	memset(&state->waiting, 0, sizeof state->waiting);
	writing_count++;
	if (writing->text == NULL ||
	    uv_queue_work(uv_default_loop(), &writing->work, write_file, plugin_state_written) < 0)
		plugin_state_written(&writing->work, UV_ENOMEM);
}

static void
tell_refused(void *data)
{
	PluginState *state = data;

	state->references++;
	waiters_tell(&state->refused, NULL);
	plugin_state_release(state);
}

static void
plugin_state_refuse(PluginState *state, PluginStateStored stored, void *data, const char *problem)
{
	waiters_add(&state->refused, stored, data, problem);
	timer_start(&state->tell, 0, tell_refused, state);
}

/* About as many bytes as an entry has in the file. */
static size_t
entry_size(const char *key, const json_t *value)
{
	size_t size = value ? json_dumpb(value, NULL, 0, JSON_COMPACT | JSON_ENCODE_ANY) : 0;

	/* Its quotes are written with backslashes. */
	return 2 * strlen(key) + size + 4;
}

static void
change(PluginState *state, const json_t *params, json_t *value, PluginStateStored stored,
       void *data)
{
	const char *problem = NULL;
	char *key = key_of(params);
	json_t *map = key ? load(state, &problem) : NULL;
	const json_t *old = map ? json_object_get(map, key) : NULL;
	size_t freed = old ? entry_size(key, old) : 0;
	size_t added = map && value ? entry_size(key, value) : 0;

	if (key == NULL)
		problem = bad_key;
	else if (problem == NULL && added > 0 && state->size + added > MAX_STATE + freed)
		problem = too_large;
	else if (problem == NULL && state->waiting.count >= MAX_WAITING)
		problem = too_many;
	if (problem != NULL)
		plugin_state_refuse(state, stored, data, problem);
	else
	{
		state->size = (state->size > freed ? state->size - freed : 0) + added;
		if (value != NULL)
			json_object_set(map, key, value);
		else
			json_object_del(map, key);
		waiters_add(&state->waiting, stored, data, NULL);
		if (!state->busy)
			begin_writing(state);
	}
	free(key);
}

void
plugin_state_set(PluginState *state, const json_t *params, PluginStateStored stored, void *data)
{
	json_t *value = json_object_get(params, "value");

	/* What JavaScript leaves out is nothing. */
	change(state, params, value, stored, data);
}

void
plugin_state_delete(PluginState *state, const json_t *params, PluginStateStored stored, void *data)
{
	change(state, params, NULL, stored, data);
}

bool
plugin_states_are_writing(void)
{
	return writing_count > 0;
}

void
plugin_states_close(void)
{
	free(directory);
	directory = NULL;
}
