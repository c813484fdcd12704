// SPDX-License-Identifier: GPL-2.0-only
/*
 * Slots in transition. While a ring stands still, a client's packets find the same endpoint each time, and
 * nothing needs to be remembered. A slot that passed to another endpoint has flows of both: a flow that begins goes
 * to the current endpoint and is remembered; an unknown flow began before, and goes to the previous endpoint.
 *
 * Packets of TCP and SCTP say whether they begin a flow. Those of UDP don't: for a while every unknown flow is taken
 * for an old one and remembered with the previous endpoint; after that, unknown flows are new.
 *
 * A slot in transition has a row, one 64-bit number, of its own or together with slots that changed hands alike:
 *
 *   63        54 53        44 43        34 33            17 16            0
 *   | used       | moved      | began      | datagram       | stream       |
 *
 * `stream` is the endpoint of unknown connections. `datagram` is that of unknown datagrams until LEARNING after the slot
 * `moved` for the last time. Flows remembered before the transition `began` belong to an earlier one. `used` is when an
 * endpoint other than the current one was chosen last, for any of the row's slots: user space ends a transition once that
 * is long enough ago.
 *
 * Only user space changes the endpoints, and it writes a row before it gives the slot to somebody else. The program
 * replaces a row only if nobody else did meanwhile.
 */

/* Times count 2^34 ns, 17 seconds. Those of rows come round after five hours. */
#define TIME_SHIFT 34
#define ROW_TIME_MASK 0x3ff
#define DATAGRAM_SHIFT 17
#define BEGAN_SHIFT 34
#define MOVED_SHIFT 44
#define USED_SHIFT 54

/* Two minutes: within this time a UDP flow should send something (RFC 4787, REQ-5). */
#define LEARNING 7

static __always_inline u32 row_age(u64 row, u32 shift, u32 now)
{
	return (now - (u32)(row >> shift)) & ROW_TIME_MASK;
}

static __always_inline u64 with_time(u64 row, u32 shift, u32 time)
{
	return (row & ~((u64)ROW_TIME_MASK << shift)) | (u64)(time & ROW_TIME_MASK) << shift;
}

/*
 * The row with times that don't come round: what was longer ago than half a turn is kept half a turn old. Flows are
 * remembered for less than that. So a flow of this transition never seems older than the transition, unless the slot
 * had no packet for the other half of a turn, and then no flow of it is remembered.
 */
static __always_inline u64 renewed(u64 row, u32 now)
{
	row = with_time(row, BEGAN_SHIFT, now - smaller(row_age(row, BEGAN_SHIFT, now), ROW_TIME_MASK / 2));
	return with_time(row, MOVED_SHIFT, now - smaller(row_age(row, MOVED_SHIFT, now), ROW_TIME_MASK / 2));
}

/* Replace a row. If somebody else did meanwhile, the next packet tries again. */
static __always_inline void replace_row(u64 *place, u64 row, u64 after)
{
	if (after != row)
		__sync_val_compare_and_swap(place, row, after);
}

/* Note that another endpoint than the current one is in use. Mostly the row says so already. */
static __always_inline u32 note_use(u64 *place, u64 row, u32 endpoint, u32 now)
{
	replace_row(place, row, with_time(row, USED_SHIFT, now));
	return endpoint;
}

/* All ones if a flow was seen since the transition began. Other flows are remnants of earlier transitions. */
static __always_inline u64 is_of_this_transition(u64 flow, u64 row, u32 now)
{
	return ~is_less(row_age(row, BEGAN_SHIFT, now), age_of(flow, now));
}

/* The row of a slot in transition, NULL if there is none. */
static __always_inline u64 *find_row(const struct slot *slot)
{
	u32 shift = RING_SHIFT(slot->ring) + WORDS_A_LINE_SHIFT - RING_SHARES_ROWS(slot->ring);
	u32 line = RING_LINE(slot->ring) + ((RING_SLOTS(slot->ring) - 1) >> shift) + 1, row = slot->number;
	struct line *found;

	if (RING_SHARES_ROWS(slot->ring))
		row = ((volatile u8 *)slot->line->words)[SLOTS_OF_SHARED + slot->number % SLOTS_OF_SHARED];
	line += row / ROWS_A_LINE;
	found = bpf_map_lookup_elem(slot->chunk, &line);
	return found ? &found->words[row % ROWS_A_LINE] : NULL;
}

/* The endpoint of a flow in a slot in transition. The slot's current endpoint is `holder`, 0 if it has none. */
static __always_inline u32 choose_in_transition(const struct service *service, const struct client *client,
						const struct packet *packet, enum packet_kind kind,
						const struct slot *slot, u32 holder)
{
	u32 now = bpf_ktime_get_coarse_ns() >> TIME_SHIFT;
	bool is_datagram = client->protocol == IPPROTO_UDP;
	u32 idle = is_datagram ? DATAGRAM_IDLE : STREAM_IDLE, limit = idle;
	u32 sequence = bpf_ntohl(packet->sequence);
	u64 hash = hash_flow(service, client), flow = 0, found = 0;
	struct bucket *bucket = find_bucket(hash);
	u64 *place = find_row(slot), held, row;
	u32 endpoint;

	NOTE(holder, holder);
	if (!place || !bucket || kind == PACKET_ECHO)	/* each ping stands for itself */
		return holder;
	held = *(volatile u64 *)place;
	row = renewed(held, now);
	replace_row(place, held, row);

	if (client->protocol != IPPROTO_TCP || !packet->opens) {
		found = find_flow(bucket, hash, sequence);
		flow = bucket->flows[found % PLACES];
		limit -= (idle - OPENING_IDLE) & is_less(found, PLACES);
		flow &= is_less(found, NOWHERE) & ~is_less(limit, age_of(flow, now));
		/* A branch: so the processor goes on with the flow's endpoint and doesn't wait for the row. */
		if (!is_of_this_transition(flow, row, now))
			flow = 0;
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
	if (endpoint && find_alive(endpoint)) {
		/* After a FIN or a RST that was not forged, only a few acknowledgements follow, and soon. */
		bool is_closing = state_of(flow) == REMEMBERED_CLOSING && !age_of(flow, now);
		u64 seen = new_flow(hash, endpoint, now, packet->closes || is_closing ? REMEMBERED_CLOSING : REMEMBERED_OPEN);

		NOTE(memory, MEMORY_REMEMBERED);
		if (seen != flow && kind != PACKET_ICMP_ERROR && !packet->opens)
			write_flow(bucket, found, hash, seen);
		return endpoint == holder ? endpoint : note_use(place, row, endpoint, now);
	}

	if (!is_datagram)
		endpoint = row & SLOT_ID_MASK;
	else
		endpoint = row_age(row, MOVED_SHIFT, now) <= LEARNING ? row >> DATAGRAM_SHIFT & SLOT_ID_MASK : holder;
	if (endpoint != holder && !find_alive(endpoint))
		endpoint = holder;	/* the former one's connections are lost; the current one tells the clients */
	NOTE(memory, endpoint == holder ? MEMORY_CURRENT : MEMORY_PREVIOUS);
	if (is_datagram && endpoint && kind != PACKET_ICMP_ERROR)
		remember(bucket, new_flow(hash, endpoint, now, REMEMBERED_OPEN), now, idle);
	return endpoint == holder ? endpoint : note_use(place, row, endpoint, now);
}
