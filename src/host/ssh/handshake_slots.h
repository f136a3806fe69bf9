/*
 * handshake_slots.h
 *		How many logins may be under way at one server.
 */
#ifndef ENVRT_HOST_HANDSHAKE_SLOTS_H
#define ENVRT_HOST_HANDSHAKE_SLOTS_H

typedef struct HandshakeSlot HandshakeSlot;
typedef void (*HandshakeGranted)(void *data);

/* Asks for a slot for a company (NULL: nobody's); granted() runs once, from the event loop, when it
 * is there. */
extern HandshakeSlot *handshake_slot_ask(const char *host, int port, const char *company,
                                         HandshakeGranted granted, void *data);

/* Gives it back, or stops waiting for it; *slot is NULL then. */
extern void handshake_slot_release(HandshakeSlot **slot);

#endif
