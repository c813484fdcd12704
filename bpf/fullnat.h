// SPDX-License-Identifier: GPL-2.0-only
/*
 * FullNAT of TCP and UDP, over IPv4 or over IPv6: each has stages of its own. Requests get the endpoint for their
 * destination and an address of the balancer for their source, so that replies come back from wherever the endpoint is;
 * replies get the VIP and the client.
 *
 * A connection is an entry as NAT's (connection.h), in a table of its own, with the word `way` beside it; its source port
 * is from a pool (ports.h). `where` and `way` of a place are written only by who claimed it.
 */

#define WAY_SOURCE_SHIFT 32
#define WAY_PORT_SHIFT 16
#define WAY_ENDS (1ULL << 15)	/* the endpoint closed the connection before the client did */

/* A number of a pool that is none. Number 0 is never used: `way` would be empty for an address of zeros. */
#define NO_POOL 0

/* The stages of the version of IP that this one is for. */
#define OWN_FULLNAT (HAS(AS_NAT6) ? STAGE_FULLNAT6 : STAGE_FULLNAT4)
#define OWN_PORTS (HAS(AS_NAT6) ? STAGE_PORTS6 : STAGE_PORTS)

/* What this version of IP has for sources; the addresses of IPv6 lie elsewhere (source_at). */
static __always_inline struct snat *find_snat(void)
{
	u32 row = 0;

	return HAS(AS_NAT6) ? (struct snat *)snat6.lookup(&row) : snat.lookup(&row);
}

static __always_inline const __be32 *source_at(const struct snat *set, u32 number)
{
	number %= MOST_SOURCES;
	return HAS(AS_NAT6) ? ((const struct snat6 *)set)->sources + 4 * number : set->sources + number;
}

static __always_inline struct connections *find_translated_bucket(u32 index)
{
	if (HAS(AS_NAT6))
		return (struct connections *)translated6.lookup(&index);
	return (struct connections *)translated.lookup(&index);
}

static __always_inline u64 translated_buckets(void)
{
	u64 buckets = HAS(AS_NAT6) ? CONNECTION6_BUCKETS : CONNECTION_BUCKETS;

	OPAQUE(buckets);
	return buckets;
}

/* The word `way` of a place. */
static __always_inline u64 *way_of(struct connections *bucket, u32 place)
{
	if (HAS(AS_NAT6))
		return &((struct translated6 *)bucket)->way[place % BUCKET_PLACES];
	return &((struct translated *)bucket)->way[place % BUCKET_PLACES];
}

/* The number of a pool, whichever version of IP it is of: an IPv4 address is the first word. NULL if there is none. */
static __always_inline u32 *find_number(const struct port_pool6 *pool)
{
	struct port_pool narrow = {
		.source = pool->source[0], .address = pool->address[0], .port = pool->port, .protocol = pool->protocol,
	};

	return HAS(AS_NAT6) ? port_pools6.lookup(pool) : port_pools.lookup(&narrow);
}

/* Note the number of a pool. False if another CPU was faster. */
static __always_inline bool note_number(const struct port_pool6 *pool, u32 number)
{
	struct port_pool narrow = {
		.source = pool->source[0], .address = pool->address[0], .port = pool->port, .protocol = pool->protocol,
	};

	return HAS(AS_NAT6) ? !port_pools6.insert(pool, &number) : !port_pools.insert(&narrow, &number);
}

/* The number of a place of a client's connections: that of its bucket, and of the place in there. */
static __always_inline u64 place_number(const struct sought *sought, u32 place)
{
	u64 hash = hash_connection(sought), buckets = translated_buckets();
	u32 half = place & BUCKET_PLACES ? hash : hash >> 32;

	return (half * buckets >> 32) * BUCKET_PLACES + place % BUCKET_PLACES;
}

static __always_inline struct pool_ports *find_pool_ports(u32 number)
{
	number &= POOL_MASK;
	return pool_ports.lookup(&number);
}

/* Take the port of a connection away from it, and give it back. The caller has claimed the connection's place. */
static __always_inline void give_back(u64 *at)
{
	u64 way = *(volatile u64 *)at;
	struct pool_ports *pool = find_pool_ports(way);
	struct snat *set = find_snat();
	u32 port = way >> WAY_PORT_SHIFT & 0xffff;

	if (!(way & POOL_MASK) || !pool || !set)
		return;
	*(volatile u64 *)at = 0;
	clear_return(return_key(way, port));
	free_bit(pool, port - set->first_port, way & WAY_ENDS, set->ports);
}

/* Claim a place that holds `held`, and give its port back. False if somebody else was faster. */
static __always_inline bool claim_place(struct connections *bucket, u32 place, u64 held)
{
	if (__sync_val_compare_and_swap(&bucket->who[place % BUCKET_PLACES], held, CLAIMED) != held)
		return false;
	give_back(way_of(bucket, place));
	return true;
}

static __always_inline void release_place(struct connections *bucket, u32 place, u64 who)
{
	*(volatile u64 *)&bucket->who[place % BUCKET_PLACES] = who;
}

/* Forget a connection. False if somebody else changed it just now. */
static __always_inline bool forget_translated(struct connection *found)
{
	struct connections *bucket = bucket_of(found);

	if (!claim_place(bucket, found->place, found->who))
		return false;
	release_place(bucket, found->place, 0);
	found->is_there = false;
	return true;
}

/* A number for a new pool: NO_POOL if all are in use. The first word with a free one is found by `full`. */
#define NUMBER_STEPS 16

static __always_inline u32 take_number(void)
{
	u32 row = 0, step;
	struct pool_numbers *numbers = pool_numbers.lookup(&row);

	if (!numbers)
		return NO_POOL;
	for (step = 0; step < NUMBER_STEPS; step++) {
		u32 group = step % 8, number;
		u64 bit, word, free = ~numbers->full[group];

		if (!free)
			continue;
		word = group * 64 + lowest_bit(free) % 64;
		OPAQUE(word);	/* so that the verifier of Linux 6.1 sees its bounds */
		word &= 511;
		number = lowest_bit(~(numbers->words[word] | (word == 0)));
		if (number >= 64) {
			__sync_fetch_and_or(&numbers->full[group], 1ULL << (word & 63));
			continue;
		}
		bit = 1ULL << (number & 63);
		if (!(__sync_fetch_and_or(&numbers->words[word], bit) & bit))
			return word * 64 + number;
	}
	return NO_POOL;
}

static __always_inline void free_number(u32 number)
{
	u32 row = 0;
	struct pool_numbers *numbers = pool_numbers.lookup(&row);

	if (!numbers)
		return;
	number &= POOL_MASK;
	__sync_fetch_and_and(&numbers->words[number / 64], ~(1ULL << (number & 63)));
	__sync_fetch_and_and(&numbers->full[number / 4096], ~(1ULL << (number / 64 & 63)));
}

/* The number of a pool, which is made if there is none. NO_POOL if there is no room for another one. */
static __always_inline u32 find_pool(const struct port_pool6 *pool)
{
	u32 *known = find_number(pool), number;
	struct address6 *source;
	struct pool_ports *row;

	if (known)
		return *known;
	number = take_number();
	row = pool_ports.lookup(&number);
	if (!row || number == NO_POOL)
		return NO_POOL;		/* as many as there is room for; the number is one that no row has */
	if (HAS(AS_NAT6)) {
		source = pool_sources6.lookup(&number);
		if (!source)
			return NO_POOL;
		copy_address(source->words, pool->source);
	} else {
		row->source = pool->source[0];
		row->address = pool->address[0];
		row->port = pool->port;
		row->protocol = pool->protocol;
	}
	if (note_number(pool, number))
		return number;
	free_number(number);
	known = find_number(pool);	/* another CPU was faster */
	return known ? *known : NO_POOL;
}

/*
 * The source of a new connection towards an endpoint: the one that the client's address says or, if that one has no port
 * left, the next that has some.
 */
static __always_inline void choose_source(const struct lease *lease, struct port_pool6 *pool, const struct snat *set)
{
	u32 at = (u64)mix(lease->client) * set->used >> 32, try;

	for (try = 0; try < MOST_SOURCES; try++) {
		struct pool_ports *row;
		u32 *number;

		at = forgotten(at, lease->way);
		copy_address(pool->source, source_at(set, at));
		if (try + 1 >= set->used)
			break;
		number = find_number(pool);
		row = number ? find_pool_ports(*number) : NULL;
		if (!row || *(volatile u64 *)&row->used < set->ports)
			break;
		at = at + 1 < set->used ? at + 1 : 0;
	}
}

/* Whether the connection at a place is no more, or its endpoint may get no more packets. */
static __always_inline bool is_gone(u64 who, u64 where, u32 now)
{
	return who >> WHO_KEY_SHIFT && (!is_live(who, where, now) || !find_alive(connection_endpoint(where)));
}

/* Clear a place whose connection is no more. */
static __always_inline bool clear_place(struct connections *bucket, u32 place, u32 now)
{
	u64 who, where;

	place %= BUCKET_PLACES;
	who = *(volatile u64 *)&bucket->who[place];
	where = *(volatile u64 *)&bucket->where[place];
	if (!is_gone(who, where, now) || !claim_place(bucket, place, who))
		return false;
	release_place(bucket, place, 0);
	return true;
}

/*
 * No packet comes here: user space runs this, for the next bucket each time. So ports of connections that are no more come
 * back although nobody asks for one; and since only programs give ports back, none is lost with a process.
 */
static __always_inline int sweep_translated(void)
{
	u32 row = 0, place, now = connection_now(), index;
	struct swept *at = HAS(AS_NAT6) ? swept6.lookup(&row) : swept.lookup(&row);
	u64 buckets = translated_buckets();
	struct connections *bucket;

	if (!at)
		return XDP_ABORTED;
	index = at->next < buckets ? at->next : 0;
	at->next = index + 1;
	bucket = find_translated_bucket(index);
	if (!bucket)
		return XDP_ABORTED;
	for (place = 0; place < BUCKET_PLACES; place++)
		at->cleared += clear_place(bucket, place, now);
	return XDP_DROP;
}

/* Look whether the connection of a port of a pool is no more, and give the port back then. */
static __always_inline void look_at_port(u32 pool, u32 port)
{
	u64 place = find_return(return_key(pool, port));
	struct connections *bucket = place ? find_translated_bucket((place - 1) / BUCKET_PLACES) : NULL;

	if (bucket)
		clear_place(bucket, place - 1, connection_now());
}

/* How full a pool is before new connections look for those that are no more, one each; if it is full, some each. */
#define TIGHT_EIGHTHS 7
#define LOOKS_IF_FULL 8

static __always_inline void seek_gone(struct pool_ports *row, u32 pool, const struct snat *set)
{
	u64 used = *(volatile u64 *)&row->used, hand = *(volatile u64 *)&row->hand, look;

	if (used * 8 < (u64)set->ports * TIGHT_EIGHTHS)
		return;
	for (look = 0; look < LOOKS_IF_FULL; look++) {
		hand = forgotten(hand, row->refused);
		hand &= is_less(hand, set->ports);
		look_at_port(pool, set->first_port + hand);
		hand++;
		if (used < set->ports)
			break;
	}
	row->hand = hand;
}

/* Take the port that a lease asks for. VERDICT_REQUEST, or the reason to drop the packet. */
static __always_inline enum verdict take_way(struct lease *lease)
{
	struct port_pool6 pool = { .port = lease->port, .protocol = lease->protocol };
	struct snat *set = find_snat();
	struct pool_ports *row;
	u32 port;

	if (!set || !set->used)
		return VERDICT_NO_PORT;
	copy_address(pool.address, lease->address);
	choose_source(lease, &pool, set);
	lease->pool = find_pool(&pool);
	row = find_pool_ports(lease->pool);
	if (!row || lease->pool == NO_POOL)
		return VERDICT_NO_PORT;
	seek_gone(row, lease->pool, set);
	port = take_port(row, lease->client_port - set->first_port, set->ports);
	if (port == NO_PORT) {
		__sync_fetch_and_add(&row->refused, 1);
		return VERDICT_NO_PORT;
	}
	lease->way = (u64)fold_address(pool.source, HAS(AS_NAT6)) << WAY_SOURCE_SHIFT |
		     (u64)(u16)(set->first_port + port) << WAY_PORT_SHIFT | (lease->pool & POOL_MASK);
	return VERDICT_REQUEST;
}

static __always_inline struct lease *find_lease(void)
{
	u32 row = 0;

	return lease.lookup(&row);
}

/*
 * The stage that takes ports. It is one of its own because the search has a loop, which the verifier would follow for each
 * way that leads there. It sees nothing of the packet, which then goes to where it came from.
 */
static __always_inline int lend_port(struct xdp_md *ctx)
{
	u32 row = 0;
	struct handed *handed = handed_over.lookup(&row);
	struct lease *asked = find_lease();

	if (!handed || !asked)
		return drop(VERDICT_STAGE_MISSING);
	asked->verdict = take_way(asked);
	asked->is_answered = 1;
	handed->is_from_main = 1;
	stages.call(ctx, OWN_FULLNAT);
	return drop(VERDICT_STAGE_MISSING);
}

/* What a new connection is, as its first packet has it. */
static __always_inline u64 who_opens(const struct packet *packet, u64 key, u32 now)
{
	u32 state = may_begin(packet) ? CONNECTION_OPENING : !packet->closes ? CONNECTION_OPEN :
		    packet->flags & TCP_RST ? CONNECTION_OVER : CONNECTION_CLIENT_CLOSED;

	return with_state(key, state, now);
}

static __always_inline u64 where_opens(const struct packet *packet, u32 service, u32 endpoint)
{
	u32 expected = bpf_ntohl(packet->sequence) + packet->opens;
	u64 where = (u64)endpoint << WHERE_ENDPOINT_SHIFT | (u64)service << WHERE_SERVICE_SHIFT |
		    expected >> NUMBERS_SHIFT;

	if (packet->flags & TCP_ACK)
		where |= (u64)numbers_of(packet->acknowledged) << WHERE_CLIENT_SHIFT;
	return where;
}

/* Claim a place for a new entry; its number goes to `found`. False if there is none, or somebody else was faster. */
static __always_inline bool claim_any(struct connection *found, u32 now)
{
	u64 chosen = choose_place(found->first, found->second, now), held;
	struct connections *bucket;

	found->place = chosen % ALL_PLACES;
	if (chosen >> 3 == CLASS_OPEN) {
		found->place = find_idle(found->first, found->second, now);
		if (found->place >= ALL_PLACES)
			return false;
	}
	bucket = bucket_of(found);
	held = *(volatile u64 *)&bucket->who[found->place % BUCKET_PLACES];
	if (held == CLAIMED || (class_of(held, now) == CLASS_OPEN &&
				is_live(held, bucket->where[found->place % BUCKET_PLACES], now)))
		return false;
	return claim_place(bucket, found->place, held);
}

/* Make the entry of a new connection whose port is taken. False if there is no place for it. */
static __always_inline bool open_translated(const struct service *service, const struct sought *sought,
					    struct connection *found, const struct packet *packet,
					    const struct lease *lease)
{
	u32 now = connection_now();
	struct connections *bucket;
	u64 key = return_key(lease->pool, lease->way >> WAY_PORT_SHIFT), way = lease->way;

	if (!claim_any(found, now)) {
		give_back(&way);
		return false;
	}
	bucket = bucket_of(found);
	*(volatile u64 *)way_of(bucket, found->place) = way;
	if (!store_return(key, place_number(sought, found->place))) {
		give_back(way_of(bucket, found->place));
		release_place(bucket, found->place, 0);
		return false;
	}
	if (HAS(AS_NAT6))
		copy_address(client_at(bucket, found->place % BUCKET_PLACES), sought->client);
	*(volatile u64 *)&bucket->where[found->place % BUCKET_PLACES] = where_opens(packet, service->index, lease->endpoint);
	__sync_val_compare_and_swap(&bucket->who[found->place % BUCKET_PLACES], CLAIMED,
				    who_opens(packet, sought->key, now));
	return true;
}

/* Have a packet leave with the source of a way. False if there is none. */
static __always_inline bool come_from(u64 way, struct forwarding *it)
{
	u32 number = way & POOL_MASK;
	struct address6 *source;

	it->source_port = bpf_htons(way >> WAY_PORT_SHIFT);
	if (!HAS(AS_NAT6)) {
		it->handed->source[0] = bpf_htonl(way >> WAY_SOURCE_SHIFT);
		return true;
	}
	source = pool_sources6.lookup(&number);
	if (!source)
		return false;
	copy_address(it->handed->source, source->words);
	return true;
}

/* Choose an endpoint for a new connection. False if there is none. */
static __always_inline bool choose_server(const struct service *service, const struct sought *sought, struct forwarding *it)
{
	struct client client = {
		.address = sought->key >> WHO_CLIENT_SHIFT,
		.port = sought->key >> WHO_PORT_SHIFT,
		.protocol = sought->protocol,
		.is_ipv6 = HAS(AS_NAT6),
		.words = sought->client,
	};
	struct bond bond = {};
	u32 try;

	find_bond(service, &client, &bond);
	for (try = 0; try < MAX_TRIES; try++) {
		u32 id = choose_bound(service, &client, try, &bond);
		struct endpoint *endpoint = id ? endpoints.lookup(&id) : NULL;
		const __be32 *address = endpoint ? address_of(id, endpoint) : NULL;

		NOTE(endpoint, id);
		if (!address || endpoint->state != ENDPOINT_USABLE)
			continue;
		it->endpoint = id;
		go_to(address, it);
		it->port = endpoint->port ?: service->target_port ?: sought->port;
		note_bond(&bond, id);
		return true;
	}
	return false;
}

/* A client's packet for which a port was taken. */
static __always_inline int fullnat_opens(struct packet *packet, const struct service *service, const struct sought *sought,
					 struct connection *found, const struct lease *lease, struct forwarding *it)
{
	if (lease->verdict != VERDICT_REQUEST)
		return drop(lease->verdict);
	forget_signs(packet, found->first->who[0]);
	if (!open_translated(service, sought, found, packet, lease))
		return drop(VERDICT_TABLE_FULL);
	it->endpoint = lease->endpoint;
	go_to(lease->address, it);
	it->port = lease->port;
	if (!come_from(lease->way, it))
		return drop(VERDICT_NO_PORT);
	it->service = service->index;
	count_connection(service->index, it->endpoint);
	note_load(it->endpoint, 1);
	return GO_ON;
}

/* A client's packet, which belongs to the connection that is found or, if there is none, may open one. */
static __always_inline int fullnat_request(struct xdp_md *ctx, struct packet *packet, struct handed *handed,
					   struct sought *sought, struct connection *found, struct lease *lease,
					   struct forwarding *it)
{
	const struct service *service = service_handed(handed);

	if (found->is_there && !starts_afresh(packet, found)) {
		u64 way = *way_of(bucket_of(found), found->place);

		NOTE(flow, connection_state_of(found->who));
		if (go_to_endpoint(sought, found->where, service, it) && come_from(way, it)) {
			if (packet->opens && connection_state_of(found->who) == CONNECTION_OPENING)
				count_unanswered(it->endpoint);
			follow(packet, true, found);
			return GO_ON;
		}
	}
	if (found->is_there && !forget_translated(found))
		return drop(VERDICT_CONNECTION_UNKNOWN);
	if (!may_open(service, packet))
		return count(VERDICT_CONNECTION_UNKNOWN, XDP_PASS);
	if (!choose_server(service, sought, it))
		return drop(VERDICT_NO_ENDPOINT);
	lease->client = sought->key >> WHO_CLIENT_SHIFT;
	lease->client_port = sought->key >> WHO_PORT_SHIFT;
	lease->protocol = sought->protocol;
	copy_address(lease->address, it->handed->translated);
	lease->port = it->port;
	lease->endpoint = it->endpoint;
	handed->ingress = packet->ingress;
	handed->tci = packet->tci;
	stages.call(ctx, OWN_PORTS);
	return drop(VERDICT_STAGE_MISSING);
}

/* Find the entry that a reply, or an error about a request, belongs to, whose ends are those of the reply. */
static __always_inline bool find_translated(const struct packet *packet, const void *address, __be16 port,
					    const void *source, __be16 source_port, struct connection *found)
{
	struct port_pool6 pool = { .port = port, .protocol = packet->protocol };
	u64 place, way;
	struct connections *bucket;
	u32 *number;

	copy_address(pool.source, source);
	copy_address(pool.address, address);
	number = find_number(&pool);
	if (!number)
		return false;
	place = find_return(return_key(*number, bpf_ntohs(source_port)));
	if (!place)
		return false;
	place--;
	bucket = find_translated_bucket(place / BUCKET_PLACES);
	if (!bucket)
		return false;
	place %= BUCKET_PLACES;
	found->first = found->second = bucket;
	found->place = place;
	way = (u64)fold_address(pool.source, HAS(AS_NAT6)) << WAY_SOURCE_SHIFT |
	      (u64)bpf_ntohs(source_port) << WAY_PORT_SHIFT | *number;
	if ((*(volatile u64 *)way_of(bucket, place) & ~WAY_ENDS) != way)
		return false;
	found->who = *(volatile u64 *)&bucket->who[place];
	found->where = *(volatile u64 *)&bucket->where[place];
	found->is_there = found->who >> WHO_KEY_SHIFT;
	found->lives = is_live(found->who, found->where, connection_now());
	return found->is_there && found->lives;
}

/* Have an endpoint's packet, or an error about one for it, go to the client of an entry. */
static __always_inline bool go_to_translated_client(const struct connection *found, struct forwarding *it)
{
	u32 index = connection_service(found->where);
	__be32 client = bpf_htonl(found->who >> WHO_CLIENT_SHIFT);
	struct front *front = fronts.lookup(&index);

	if (!front)
		return false;
	it->change = CHANGE_BOTH;
	it->is_reply = true;
	it->service = index;
	it->endpoint = connection_endpoint(found->where);
	go_to(HAS(AS_NAT6) ? client_at(found->first, found->place % BUCKET_PLACES) : &client, it);
	it->port = bpf_htons(found->who >> WHO_PORT_SHIFT);
	copy_address(it->handed->source, front->vip);
	it->source_port = front->port;
	/* The address of an IPv6 client lies beside `who`: another connection may have got the place meanwhile. */
	return !HAS(AS_NAT6) ||
	       !((*(volatile u64 *)&found->first->who[found->place % BUCKET_PLACES] ^ found->who) >> WHO_KEY_SHIFT);
}

/* Note that the endpoint was the first to close a connection. */
static __always_inline void note_ends(const struct packet *packet, struct connection *found)
{
	u64 *way = way_of(found->first, found->place);

	if (packet->flags & TCP_FIN && connection_state_of(found->who) <= CONNECTION_OPEN && !(*way & WAY_ENDS))
		__sync_fetch_and_or(way, WAY_ENDS);
}

/* A packet for one of the balancer's own sources: a reply, or an error about a request. */
static __always_inline int fullnat_reply(struct packet *packet, enum packet_kind kind, struct forwarding *it)
{
	bool is_error = kind == PACKET_ICMP_ERROR;
	struct connection found = {};
	struct ports *ports = packet->ports;

	if (is_error) {
		const void *server = is_ipv6(packet) ? (void *)&packet->quoted6->daddr : (void *)&packet->quoted->daddr;
		const void *own = is_ipv6(packet) ? (void *)&packet->quoted6->saddr : (void *)&packet->quoted->saddr;

		if (!find_translated(packet, server, ports->destination, own, ports->source, &found))
			return NOBODYS;
	} else if (!find_translated(packet, source_of(packet), ports->source, destination_of(packet), ports->destination,
				    &found)) {
		return NOBODYS;
	}
	NOTE(service, connection_service(found.where));
	NOTE(flow, connection_state_of(found.who));
	NOTE(endpoint, connection_endpoint(found.where));
	if (is_for_many(packet->eth))
		return drop(VERDICT_LINK_BROADCAST);
	if (ttl_of(packet) <= 1)
		return drop(VERDICT_TTL_EXPIRED);
	if (!find_alive(connection_endpoint(found.where))) {
		if (!is_error)
			forget_translated(&found);
		return drop(VERDICT_ENDPOINT_DISABLED);
	}
	if (!go_to_translated_client(&found, it))
		return NOBODYS;
	it->is_error = is_error;
	it->verdict = is_error ? VERDICT_ERROR_RELAYED : VERDICT_REPLY;
	if (!is_error) {
		note_ends(packet, &found);
		follow(packet, false, &found);
	}
	return GO_ON;
}

/* An error about a reply, which goes to the endpoint that sent it. */
static __always_inline int fullnat_error(const struct service *service, const struct sought *sought,
					 const struct connection *found, struct forwarding *it)
{
	it->change = CHANGE_BOTH;
	it->is_error = true;
	it->verdict = VERDICT_ICMP_ERROR;
	if (!found->is_there || !found->lives || !go_to_endpoint(sought, found->where, service, it))
		return NOBODYS;
	return come_from(*way_of(bucket_of(found), found->place), it) ? GO_ON : NOBODYS;
}

/* Find the connection that a packet belongs to, or open one. `handed` has the service that the packet is for, if any. */
static __always_inline int fullnat(struct xdp_md *ctx, struct packet *packet, enum packet_kind kind, struct handed *handed,
				   struct forwarding *it)
{
	const struct service *service = service_handed(handed);
	bool is_turned_away = HAS(ALLOWED_SOURCES) && handed->is_refused, is_answered;
	struct lease *asked = find_lease();
	struct connection found = {};
	struct sought sought;

	if (!asked)
		return NOBODYS;
	it->handed = handed;
	is_answered = asked->is_answered;
	asked->is_answered = 0;
	if (service->mode != MODE_FULLNAT)
		return fullnat_reply(packet, kind, it);
	sought = sought_by(packet, kind, handed);
	if (kind != PACKET_ICMP_ERROR && !is_turned_away) {
		NOTE(service, service->index);
		if (is_for_many(packet->eth))
			return drop(VERDICT_LINK_BROADCAST);
		if (has_impossible_source(packet))
			return drop(VERDICT_IMPOSSIBLE_SOURCE);
		if (ttl_of(packet) <= 1)
			return expired(ctx, packet);
	}
	if (!find_connection(&sought, &found))
		return NOBODYS;
	if (is_turned_away) {
		if (found.is_there)
			forget_translated(&found);
		return TURNED_AWAY;
	}
	if (kind == PACKET_ICMP_ERROR)
		return fullnat_error(service, &sought, &found, it);
	it->change = CHANGE_BOTH;
	it->verdict = VERDICT_REQUEST;
	if (is_answered)
		return fullnat_opens(packet, service, &sought, &found, asked, it);
	return fullnat_request(ctx, packet, handed, &sought, &found, asked, it);
}
