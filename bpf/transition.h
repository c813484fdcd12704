// SPDX-License-Identifier: GPL-2.0-only
/*
 * Slots in transition. While a ring stands still, a client's packets find the same endpoint each time, and
 * nothing needs to be remembered. A slot that passed to another endpoint has flows of both: a flow that begins goes
 * to the current endpoint and is remembered; an unknown flow began before, and goes to the previous endpoint.
 *
 * Packets of TCP and SCTP say whether they begin a flow. Those of UDP don't: for a while every unknown flow is taken
 * for an old one and remembered with the previous endpoint; after that, unknown flows are new.
 *
 * User space ends a transition when no endpoint but the current one was chosen for long enough (`used`).
 */

/* Whether an endpoint may still get packets. */
static __always_inline bool is_alive(u32 id)
{
	struct endpoint *endpoint = endpoints.lookup(&id);

	return endpoint && (endpoint->state == ENDPOINT_USABLE || endpoint->state == ENDPOINT_RETIRED);
}

/* Note that another endpoint than the current one is in use. Mostly the row says so already. */
static __always_inline u32 note_use(struct previous *row, u32 endpoint, u32 now)
{
	if (row->used != now)
		row->used = now;
	return endpoint;
}

/* All ones if a flow was seen since the transition began. Other flows are remnants of earlier transitions. */
static __always_inline u64 is_of_this_transition(u64 flow, const struct previous *row, u32 now)
{
	return ~is_less((now >> SEEN_UNIT_SHIFT) - (row->began >> SEEN_UNIT_SHIFT), age_of(flow, now));
}

/* The endpoint of a flow in a slot in transition. The slot's current endpoint is `holder`, 0 if it has none. */
static __always_inline u32 choose_in_transition(const struct service *service, const struct client *client,
						const struct packet *packet, enum packet_kind kind,
						const struct slot *slot, u32 holder)
{
	u32 now = bpf_ktime_get_coarse_ns() >> 30;
	u32 index = slot->rows, number = slot->number;
	bool is_datagram = client->protocol == IPPROTO_UDP;
	u32 idle = is_datagram ? DATAGRAM_IDLE : STREAM_IDLE, limit = idle;
	u32 sequence = kind == PACKET_TCP ? bpf_ntohl(packet->tcp->seq) : 0;
	void *rows = previous.lookup(&index);
	struct previous *row = rows ? bpf_map_lookup_elem(rows, &number) : NULL;
	u64 hash = hash_flow(service, client), flow = 0, found = 0;
	struct bucket *bucket = find_bucket(hash);
	u32 endpoint;

	NOTE(previous, index);
	NOTE(holder, holder);
	if (!row || !bucket || kind == PACKET_ECHO)	/* each ping stands for itself */
		return holder;

	if (kind != PACKET_TCP || !packet->opens) {
		found = find_flow(bucket, hash, sequence);
		flow = bucket->flows[found % PLACES];
		limit -= (idle - OPENING_IDLE) & is_less(found, PLACES);
		flow &= is_less(found, NOWHERE) & is_of_this_transition(flow, row, now) &
			~is_less(limit, age_of(flow, now));
	}
	/*
	 * A SYN always begins a flow: later packets tell by their sequence numbers which flow they belong to. Packets
	 * of SCTP can't tell, since none carries anything of its INIT. So an INIT begins no flow while an association
	 * is open; its endpoint handles the INIT (RFC 9260, section 5.2.2).
	 */
	if (packet->opens && (found < PLACES || state_of(flow) != REMEMBERED_OPEN)) {
		NOTE(memory, MEMORY_BEGINS);
		if (holder)
			remember(bucket, new_flow(hash_opening(hash, sequence), holder, now, REMEMBERED_OPENING), now,
				 idle);
		return holder;
	}

	endpoint = endpoint_of(flow);
	if (endpoint && is_alive(endpoint)) {
		/* After a FIN or a RST that was not forged, only a few acknowledgements follow, and soon. */
		bool is_closing = state_of(flow) == REMEMBERED_CLOSING && !age_of(flow, now);
		u64 seen = new_flow(hash, endpoint, now, packet->closes || is_closing ? REMEMBERED_CLOSING : REMEMBERED_OPEN);

		NOTE(memory, MEMORY_REMEMBERED);
		if (seen != flow && kind != PACKET_ICMP_ERROR && !packet->opens)
			write_flow(bucket, found, hash, seen);
		return endpoint == holder ? endpoint : note_use(row, endpoint, now);
	}

	if (!is_datagram)
		endpoint = row->stream;
	else
		endpoint = (s32)(row->learnt - now) > 0 ? row->datagram : holder;
	if (endpoint != holder && !is_alive(endpoint))
		endpoint = holder;	/* the former one's connections are lost; the current one tells the clients */
	NOTE(memory, endpoint == holder ? MEMORY_CURRENT : MEMORY_PREVIOUS);
	if (is_datagram && endpoint && kind != PACKET_ICMP_ERROR)
		remember(bucket, new_flow(hash, endpoint, now, REMEMBERED_OPEN), now, idle);
	return endpoint == holder ? endpoint : note_use(row, endpoint, now);
}
