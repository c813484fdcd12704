// SPDX-License-Identifier: GPL-2.0-only
/*
 * Connections. Each has two flows, one per direction; a packet finds its flow by the addresses that it comes with.
 *
 * The table is an LRU and may evict either flow, so the one that is still used makes the other again.
 */

#define SECOND_NS 1000000000LL

/* How often a flow's age is written. Writing it with each packet would move its cache line between CPUs. */
#define REFRESH_NS SECOND_NS

/*
 * A connection that was silent for so long gives its addresses to a new connection that needs them.
 * RFC 5382, REQ-5: not before 2 hours and 4 minutes.
 */
#define IDLE_NS (7440 * SECOND_NS)

/*
 * The same for UDP, which ends with silence alone: two minutes (RFC 4787, REQ-5), and half a minute as long as the endpoint
 * has not answered.
 */
#define DATAGRAM_IDLE_NS (120 * SECOND_NS)
#define DATAGRAM_OPENING_NS (30 * SECOND_NS)

/*
 * How long a connection must be silent after a FIN or a RST until its addresses are free. One side may close its
 * direction and go on to receive, and a SYN meanwhile may be forged.
 */
#define CLOSING_NS (2 * SECOND_NS)

/* RFC 5382, REQ-5: for how long packets may follow the end of a connection, four minutes. */
#define TRANSITORY_NS (240 * SECOND_NS)

/* How far a FIN or a RST may be ahead of what its receiver acknowledged: a window without scaling. */
#define WINDOW 0xffff

/* Ages can be negative: another CPU may have written a later time meanwhile. */
static __always_inline bool is_older(const struct flow *flow, u64 now, s64 age_ns)
{
	return (s64)(now - flow->last_seen) >= age_ns;
}

/* Whether a flow must make way for a new connection with the same addresses. */
static __always_inline bool is_over(const struct flow *flow, u8 protocol, u64 now)
{
	if (is_udp(protocol))
		return is_older(flow, now, flow->state == FLOW_OPENING ? DATAGRAM_OPENING_NS : DATAGRAM_IDLE_NS);
	return is_older(flow, now, flow->state == FLOW_CLOSING ? CLOSING_NS : IDLE_NS);
}

/* Whether a packet may begin a connection where another one with the same addresses is over. */
static __always_inline bool may_begin(const struct packet *packet)
{
	return packet->opens || is_udp(packet->protocol);
}

/*
 * Whether an endpoint's packet is no reply although a flow has its addresses: the client may now talk to the endpoint
 * directly, from the port of a former connection to the VIP. The endpoint's side of a direct connection begins with a
 * SYN, and a connection that is over sends none.
 */
static __always_inline bool is_no_reply(const struct flow *flow, const struct packet *packet, u64 now)
{
	bool has_syn = packet->flags & TCP_SYN;

	if (is_udp(packet->protocol))
		return is_over(flow, packet->protocol, now);
	if (flow->state == FLOW_CLOSING)
		return has_syn || is_older(flow, now, TRANSITORY_NS);
	return has_syn && is_older(flow, now, IDLE_NS);
}

/*
 * Whether a FIN or a RST ends its connection: its sequence number must be one that the receiver waits for. The others
 * are forwarded, and change nothing here, as at their receiver (RFC 9293, section 3.10.7.4). `other` is the other half
 * of the connection.
 */
static __always_inline bool is_end(const struct packet *packet, const struct flow *flow, const struct flow *other)
{
	/* The RST of an endpoint that refuses a connection acknowledges the SYN; no other number is known yet. */
	if (flow->state == FLOW_OPENING && flow->direction == DIRECTION_REPLY)
		return packet->acknowledged == flow->acknowledged;
	return other && other->acknowledged && bpf_ntohl(packet->sequence) - bpf_ntohl(other->acknowledged) <= WINDOW;
}

/* The state of a connection after a packet of the direction that `flow` has. */
static __always_inline u8 state_after(const struct packet *packet, const struct flow *flow, const struct flow *other)
{
	if (is_udp(packet->protocol))
		return flow->direction == DIRECTION_REPLY ? FLOW_OPEN : flow->state;
	if (packet->closes)
		return is_end(packet, flow, other) ? FLOW_CLOSING : flow->state;
	if (flow->direction == DIRECTION_REQUEST && packet->opens)
		return flow->state == FLOW_CLOSING ? FLOW_OPENING : flow->state;
	if (flow->direction == DIRECTION_REQUEST && flow->state == FLOW_OPENING)
		return FLOW_OPEN;
	return flow->state;
}

/*
 * Whether the endpoint of a connection may still get packets. If its id now belongs to another address, the state
 * of that id says nothing about this connection.
 */
static __always_inline bool is_served(u32 id, __be32 address)
{
	struct endpoint *endpoint = find_alive(id);

	return endpoint && endpoint->address == address;
}

/* Make the other half of a connection from this one. */
static __always_inline void mirror(const struct flow_key *key, const struct flow *flow,
				   struct flow_key *other_key, struct flow *other)
{
	*other_key = *key;
	*other = *flow;
	other->acknowledged = 0;
	if (flow->direction == DIRECTION_REQUEST) {
		other_key->source = flow->address;
		other_key->source_port = flow->port;
		other_key->destination = key->source;
		other_key->destination_port = key->source_port;
		other->address = key->destination;
		other->port = key->destination_port;
		other->direction = DIRECTION_REPLY;
	} else {
		other_key->source = key->destination;
		other_key->source_port = key->destination_port;
		other_key->destination = flow->address;
		other_key->destination_port = flow->port;
		other->address = key->source;
		other->port = key->source_port;
		other->direction = DIRECTION_REQUEST;
	}
}

static __always_inline bool is_same_way(const struct flow *one, const struct flow *two)
{
	return one->direction == two->direction && one->address == two->address && one->port == two->port;
}

/* Note in both halves of a connection what a packet tells about its state. Most packets tell nothing new. */
static __always_inline void follow(const struct flow_key *key, struct flow *flow, const struct packet *packet)
{
	u64 now = bpf_ktime_get_coarse_ns();
	struct flow_key other_key;
	struct flow other, *found;
	u8 state;

	if (!packet->closes) {
		if (packet->flags & TCP_ACK && flow->acknowledged != packet->acknowledged)
			flow->acknowledged = packet->acknowledged;
		if (state_after(packet, flow, NULL) == flow->state && !is_older(flow, now, REFRESH_NS))
			return;
	}

	mirror(key, flow, &other_key, &other);
	found = flows.lookup(&other_key);
	if (found && !is_same_way(found, &other))
		found = NULL;
	state = state_after(packet, flow, found);
	flow->state = other.state = state;
	flow->last_seen = other.last_seen = now;
	if (found) {
		found->state = state;
		found->last_seen = now;
	} else {
		flows.insert(&other_key, &other);	/* fails if another connection has this key */
	}
}

/* Forget both halves of a connection. `flow` must not be used after this. */
static __always_inline void forget(struct flow_key *key, const struct flow *flow)
{
	struct flow_key other_key;
	struct flow other, *found;

	mirror(key, flow, &other_key, &other);
	found = flows.lookup(&other_key);
	if (found && is_same_way(found, &other))
		flows.delete(&other_key);
	flows.delete(key);
}

/*
 * Make the half of a new connection for its replies. False if the endpoint already talks to this client address and
 * port for another VIP: its replies could not be told apart. `first` is the number that the endpoint will acknowledge
 * first, 0 if unknown.
 */
static __always_inline bool claim_replies(const struct flow_key *key, const struct flow *flow, __be32 first)
{
	struct flow_key reply_key;
	struct flow reply, *taken;

	mirror(key, flow, &reply_key, &reply);
	reply.acknowledged = first;
	if (!flows.insert(&reply_key, &reply))
		return true;
	taken = flows.lookup(&reply_key);
	if (taken && !is_same_way(taken, &reply) && !is_over(taken, key->protocol, flow->last_seen))
		return false;
	return !flows.update(&reply_key, &reply);
}
