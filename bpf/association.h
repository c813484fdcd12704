// SPDX-License-Identifier: GPL-2.0-only
/*
 * Associations of SCTP (RFC 9260), which have one address at each side here. They lie in the table of connections, and
 * where an entry of TCP has numbers, one of SCTP has verification tags: 14 bits of each, 0 if the tag is not known. Each
 * side chooses a tag when it begins, and all packets to it carry that one, so who doesn't see them can't guess it. Fourteen
 * bits make one forged packet of 16,384 look right, where the numbers of TCP let through 24 times as many; and what an
 * entry takes for right or wrong decides about the entry alone: all packets go on to their receiver, which compares the
 * whole tag. So a row of its own for whole tags would buy nothing.
 *
 * A packet with another tag is nothing to its receiver, and changes nothing here. The tags of an association are those of
 * its INIT and INIT-ACK. The client's side may be forged, the endpoint's is believed: where an association is open, an INIT
 * changes nothing, whoever sends it; but when the endpoint then has taken a cookie, or sends one, the association began
 * anew, with the client's tag as the endpoint uses it from now on, and with the endpoint's as the client's next packet has it.
 *
 * Only the first chunk of a packet is looked at. INIT, INIT-ACK and SHUTDOWN-COMPLETE are alone in theirs, a cookie and its
 * acknowledgement are the first (sections 3.3.11 and 3.3.12); a SHUTDOWN or an ABORT may be behind others, and is missed
 * then: the entry lasts for its time, and the client's next INIT goes to the same endpoint.
 */

#define CHUNK_NONE 0xff

/* Bits of the flags of ABORT and SHUTDOWN-COMPLETE: sections 3.3.7 and 3.3.13. */
#define CHUNK_REFLECTED 1

struct chunk_header {
	u8 type;
	u8 flags;
	__be16 length;
	__be32 initiate;	/* INIT and INIT-ACK */
};

/* What an entry has of a tag. */
static __always_inline u32 kept_tag(__be32 tag)
{
	u32 kept = bpf_ntohl(tag) & WHERE_NUMBERS_MASK;

	return kept + (is_some(kept) ^ 1);
}

/* What a packet begins with. */
static __always_inline struct chunk first_chunk(struct xdp_md *ctx, const struct packet *packet)
{
	struct sctp *sctp = (void *)packet->ports;
	struct chunk_header *header = (void *)(sctp + 1);
	u32 bytes = packet->ip_bytes - ip_header_bytes(false);
	struct chunk chunk = { .type = CHUNK_NONE };

	if ((void *)header + 4 > (void *)(long)ctx->data_end)
		return chunk;
	chunk.tag = kept_tag(sctp->tag);
	if (bytes < sizeof(*sctp) + 4)
		return chunk;
	chunk.type = header->type;
	if (chunk.type == SCTP_ABORT || chunk.type == SCTP_SHUTDOWN_COMPLETE)
		chunk.is_reflected = header->flags & CHUNK_REFLECTED;
	if ((void *)(header + 1) <= (void *)(long)ctx->data_end && bytes >= sizeof(*sctp) + sizeof(*header))
		chunk.initiate = kept_tag(header->initiate);
	return chunk;
}

/* The tags that an entry has: what packets to the client carry, and those to the endpoint. */
struct tags {
	u32 client;
	u32 endpoint;
};

static __always_inline struct tags tags_of(u64 where)
{
	return (struct tags){
		.client = where >> WHERE_CLIENT_SHIFT & WHERE_NUMBERS_MASK,
		.endpoint = where & WHERE_NUMBERS_MASK,
	};
}

static __always_inline u64 with_tags(u64 where, struct tags tags)
{
	return where >> (2 * WHERE_CLIENT_SHIFT) << (2 * WHERE_CLIENT_SHIFT) | (u64)tags.client << WHERE_CLIENT_SHIFT |
	       tags.endpoint;
}

/* What the client's first packet that anybody saw tells. One from the middle counts as open once the endpoint answers. */
static __always_inline u64 tags_at_first(const struct chunk *chunk)
{
	struct tags tags = {};

	if (chunk->type == SCTP_INIT)
		tags.client = chunk->initiate;
	else if (chunk->is_reflected)
		tags.client = chunk->tag;
	else
		tags.endpoint = chunk->tag;
	return with_tags(0, tags);
}

static __always_inline u32 state_at_first(const struct chunk *chunk)
{
	return chunk->type == SCTP_ABORT || chunk->type == SCTP_SHUTDOWN_COMPLETE ? CONNECTION_OVER : CONNECTION_OPENING;
}

/* What is known of an association after a packet. */
struct association {
	struct tags tags;
	u32 state;
	bool is_seen;	/* the packet says that it lives */
};

/*
 * An INIT or INIT-ACK, of an association that is not open. The sender's tag is what it says there; the receiver's is
 * unknown after an INIT, unless it is one that was sent again.
 */
static __always_inline void begin_association(struct association *after, const struct chunk *chunk, bool is_request)
{
	u32 *own = is_request ? &after->tags.client : &after->tags.endpoint;
	u32 *other = is_request ? &after->tags.endpoint : &after->tags.client;

	if (chunk->type == SCTP_INIT) {
		if (*own != chunk->initiate)
			*other = 0;
		after->state = CONNECTION_OPENING;
	} else {
		/* The client may answer only an INIT that there was. */
		if (is_request && *other != chunk->tag)
			return;
		*other = chunk->tag;
	}
	*own = chunk->initiate;
	after->is_seen = true;
}

/* Whether a packet has the tag that its receiver waits for, or the first that anybody sees. */
static __always_inline bool has_right_tag(struct association *after, const struct chunk *chunk, bool is_request)
{
	u32 *expected = is_request == !chunk->is_reflected ? &after->tags.endpoint : &after->tags.client;

	if (*expected)
		return *expected == chunk->tag;
	/* Until the endpoint has said which one it wants, nobody can know it. */
	if (is_request && after->state == CONNECTION_OPENING)
		return false;
	if (!chunk->is_reflected)
		*expected = chunk->tag;
	return true;
}

/* What is known after a packet with the right tag that begins nothing. */
static __always_inline void go_on(struct association *after, const struct chunk *chunk, bool is_request, u32 silence)
{
	if (chunk->type == SCTP_ABORT || chunk->type == SCTP_SHUTDOWN_COMPLETE) {
		after->state = CONNECTION_OVER;
	} else if (after->state == CONNECTION_OVER) {
		/* What comes after the end doesn't put it off, unless it comes so late that the end was forged. */
		if (silence < REVIVAL)
			return;
		after->state = CONNECTION_OPEN;
	} else if (chunk->type == SCTP_SHUTDOWN || chunk->type == SCTP_SHUTDOWN_ACK) {
		if (after->state < CONNECTION_CLIENT_CLOSED)
			after->state = is_request ? CONNECTION_CLIENT_CLOSED : CONNECTION_ENDPOINT_CLOSED;
	} else if (after->state == CONNECTION_OPENING && after->tags.client && after->tags.endpoint) {
		after->state = CONNECTION_OPEN;
	}
	after->is_seen = true;
}

static __always_inline struct association association_after(const struct chunk *chunk, bool is_request,
							    const struct connection *found, u32 now)
{
	struct association after = { .tags = tags_of(found->where), .state = connection_state_of(found->who) };
	bool is_cookie = chunk->type == SCTP_COOKIE_ECHO || chunk->type == SCTP_COOKIE_ACK;

	if (chunk->type == SCTP_INIT) {
		if (after.state != CONNECTION_OPEN)
			begin_association(&after, chunk, is_request);
	} else if (chunk->type == SCTP_INIT_ACK) {
		if (after.state == CONNECTION_OPENING)
			begin_association(&after, chunk, is_request);
	} else if (!is_request && is_cookie && after.state != CONNECTION_OVER &&
		   (after.state == CONNECTION_OPENING || after.tags.client != chunk->tag)) {
		if (after.tags.client != chunk->tag)
			after.tags.endpoint = 0;
		after.tags.client = chunk->tag;
		after.state = CONNECTION_OPEN;
		after.is_seen = true;
	} else if (has_right_tag(&after, chunk, is_request)) {
		go_on(&after, chunk, is_request, silence_of(found->who, now));
	}
	return after;
}

/* Note in an entry what a packet tells about its association. Most packets tell nothing new. */
static __always_inline void follow_association(const struct chunk *chunk, bool is_request, const struct connection *found)
{
	u32 now = connection_now(), place = found->place % BUCKET_PLACES;
	struct association after = association_after(chunk, is_request, found, now);
	struct connections *bucket = bucket_of(found);
	u64 who = with_state(found->who, after.state, now), where = with_tags(found->where, after.tags);

	if (!after.is_seen)
		return;
	if (who != found->who && __sync_val_compare_and_swap(&bucket->who[place], found->who, who) == found->who &&
	    HAS(LEAST_CONNECTIONS) && after.state == CONNECTION_OVER && connection_state_of(found->who) != CONNECTION_OVER)
		note_load(connection_endpoint(found->where), -1);
	if (where != found->where)
		__sync_val_compare_and_swap(&bucket->where[place], found->where, where);
}

/* As is_no_reply(): the endpoint answers an INIT that the client sent it directly, since its association here is over. */
static __always_inline bool is_no_reply_of_sctp(const struct chunk *chunk, const struct connection *found)
{
	return chunk->type == SCTP_INIT_ACK && connection_state_of(found->who) == CONNECTION_OVER;
}
