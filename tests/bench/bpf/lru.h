// SPDX-License-Identifier: GPL-2.0-only
/*
 * The baseline: every flow is kept in a hash table of the kernel's that evicts the least recently used, as
 * Katran does it. A SYN is never looked up; what is not found is scheduled and inserted. Keys and values are as
 * long as Katran's.
 */

struct lru_key {
	u32 source[4];
	u32 destination[4];
	u16 source_port;
	u16 destination_port;
	u8 protocol;
	u8 pad[3];
};

struct lru_flow {
	u32 endpoint;
	u32 pad;
	u64 last_seen;	/* of datagrams only */
};

BPF_TABLE("lru_hash", struct lru_key, struct lru_flow, lru_flows, 1);
BPF_ARRAY(lru_misses, u64, 1);

#define LRU_DATAGRAM_NS (30 * 1000000000ull)

static __always_inline u32 lru_endpoint(const struct service *service, const struct client *client,
					const struct packet *packet, enum packet_kind kind,
					struct endpoint **found)
{
	struct lru_key key = {
		.source = { client->address },	/* of IPv6 the hash, which spares the baseline a copy */
		.destination = { service->index },
		.source_port = client->port,
		.protocol = client->protocol,
	};
	struct lru_flow new = {}, *flow;
	u32 row = 0;
	u64 *misses;

	if (client->protocol != IPPROTO_TCP)
		new.last_seen = bpf_ktime_get_ns();
	if (!packet->opens) {
		flow = lru_flows.lookup(&key);
		if (flow && new.last_seen - flow->last_seen > LRU_DATAGRAM_NS)
			flow = NULL;
		if (flow) {
			u32 id = flow->endpoint;

			if (new.last_seen)
				flow->last_seen = new.last_seen;
			*found = endpoints.lookup(&id);
			return *found ? id : 0;
		}
	}
	misses = lru_misses.lookup(&row);
	if (misses)
		(*misses)++;
	new.endpoint = find_endpoint(service, client, packet, kind, found);
	if (new.endpoint)
		lru_flows.update(&key, &new);
	return new.endpoint;
}

/* What the modes call from here on. */
#define find_endpoint lru_endpoint
