// SPDX-License-Identifier: GPL-2.0-only
/* The common part of both modes of direct server return. */

static __always_inline bool is_dsr(const struct service *service)
{
	return service->mode == MODE_DSR_L2 || service->mode == MODE_DSR_L3;
}

static __always_inline bool is_tunnelled(const struct service *service)
{
#if defined(DSR_L2) && defined(DSR_L3)
	return service->mode == MODE_DSR_L3;
#elif defined(DSR_L3)
	return true;
#else
	return false;
#endif
}

/*
 * The id of the endpoint for a client's packets, 0 if there is none. A retired endpoint is accepted: new connections
 * can't be told from open ones here, and a ring names retired endpoints only while user space is writing it.
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
		struct endpoint *endpoint = id ? endpoints.lookup(&id) : NULL;

		NOTE(endpoint, id);
		if (endpoint && (endpoint->state == ENDPOINT_USABLE || endpoint->state == ENDPOINT_RETIRED)) {
			*found = endpoint;
			return id;
		}
		if (try < MAX_TRIES)
			id = choose_endpoint(service, client, try);
	}
	return 0;
}
