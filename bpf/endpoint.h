// SPDX-License-Identifier: GPL-2.0-only
/* The endpoint of a client's packets, in the modes of direct server return: that of a slot of the ring. */

/*
 * The id of the endpoint for a client's packets, 0 if there is none; its row goes to `found`. A retired endpoint is
 * accepted: new connections can't be told from open ones here, and a ring names retired endpoints only while user space
 * is writing it.
 */
static __always_inline u32 find_endpoint(const struct service *service, const struct client *client,
					 const struct packet *packet, enum packet_kind kind,
					 struct endpoint **found)
{
	struct slot slot;
	u32 content = read_slot(service, client, 0, &slot);
	u32 try, id = content & SLOT_ID_MASK;

	if (content & SLOT_IN_TRANSITION)
		id = choose_in_transition(service, client, packet, kind, &slot, id);
#pragma unroll	/* Linux 6.1 refuses a loop whose last block falls through to its first */
	for (try = 1; try <= MAX_TRIES; try++) {
		NOTE(endpoint, id);
		*found = id ? find_alive(id) : NULL;
		if (*found)
			return id;
		if (try < MAX_TRIES)
			id = choose_endpoint(service, client, try);
	}
	return 0;
}
