/*
 * plugin_state.h
 *		What plugins want to remember.
 */
#ifndef ENVRT_HOST_PLUGIN_STATE_H
#define ENVRT_HOST_PLUGIN_STATE_H

#include <stdbool.h>

#include <jansson.h>

/* Where it is kept: below this, the data directory. */
extern void plugin_state_set_directory(const char *data_directory);

typedef struct PluginState PluginState;

/* Of the plugin of that key; there is one of each. */
extern PluginState *plugin_state_open(const char *plugin);
extern void plugin_state_release(PluginState *state);

/* The value that the params of state.get name, the state's, or NULL; or *problem, a constant. */
extern json_t *plugin_state_get(PluginState *state, const json_t *params, const char **problem);

/* problem: a constant, or NULL when it is on disk. */
typedef void (*PluginStateStored)(void *data, const char *problem);

/* As the params of state.set and state.delete say; stored() comes from the event loop, always. */
extern void plugin_state_set(PluginState *state, const json_t *params, PluginStateStored stored,
                             void *data);
extern void plugin_state_delete(PluginState *state, const json_t *params, PluginStateStored stored,
                                void *data);

/* Whether something is still on its way to the disk. */
extern bool plugin_states_are_writing(void);
extern void plugin_states_close(void);

#endif
