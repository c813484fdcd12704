// SPDX-License-Identifier: GPL-2.0-only
/*
 * Watching: the feature WATCHING makes a second program of the same source, with the same maps. While somebody watches, the
 * program on the interfaces hands every packet to it by a tail call, which costs next to nothing while there is nobody
 * (the kernel makes it a jump over itself). It does the same to a packet, and reports those that the filter matches:
 * how they came in, what was looked up for them (NOTE), and how they left.
 *
 * What is reported is bounded by `limit`, which user space raises as it reads, and ends by itself at `until`. The
 * array `watchers` is pinned nowhere: when the process that watches ends, in whatever way, the kernel empties it.
 */

#define WATCH_BYTES 128
#define WATCH_REPORTS 512	/* user space makes so many rows */

static __always_inline bool is_watched_client(const struct watch_filter *filter, const void *address, __be16 port)
{
	if (filter->client_port && filter->client_port != port)
		return false;
	if (filter->is_ipv6)
		return is_same_words(address, filter->client);
	return *(const __be32 *)address == filter->client[0];
}

static __always_inline bool is_watched_vip(const struct watch_filter *filter, const void *address, __be16 port)
{
	if (!filter->has_vip)
		return true;
	if (filter->vip_port && filter->vip_port != port)
		return false;
	if (filter->is_ipv6)
		return is_same_words(address, filter->vip);
	return *(const __be32 *)address == filter->vip[0];
}

static __always_inline bool is_watched_flow(const struct watch_filter *filter, const void *source,
					    const void *destination, struct ports ports)
{
	return (is_watched_client(filter, source, ports.source) &&
		is_watched_vip(filter, destination, ports.destination)) ||
	       is_watched_client(filter, destination, ports.destination);
}

/* Whether the filter matches a frame. Which of the packets to a client come from the VIP only the end can tell. */
static __always_inline bool is_watched(struct xdp_md *ctx, const struct watch_filter *filter)
{
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = (void *)(long)ctx->data;
	struct iphdr *ip = (void *)(eth + 1);
	struct ipv6hdr *ip6;
	struct ports *ports;
	struct ports found = {};
	__be16 protocol;

	if ((void *)(ip + 1) > end)
		return false;
	protocol = eth->h_proto;
	if (protocol == bpf_htons(ETH_P_8021Q) || protocol == bpf_htons(ETH_P_8021AD)) {
		protocol = ((__be16 *)ip)[1];
		ip = (void *)ip + 4;
		if ((void *)(ip + 1) > end)
			return false;
	}
	if (filter->is_ipv6) {
		ip6 = (void *)ip;
		if (protocol != bpf_htons(ETH_P_IPV6) || (void *)(ip6 + 1) > end)
			return false;
		ports = (void *)(ip6 + 1);
		if ((void *)(ports + 1) <= end && ip6->nexthdr != IPPROTO_ICMPV6)
			found = *ports;
		return is_watched_flow(filter, &ip6->saddr, &ip6->daddr, found);
	}
	if (protocol != bpf_htons(ETH_P_IP))
		return false;
	ports = (void *)(ip + 1);
	if ((void *)(ports + 1) <= end && ip->ihl == 5 && ip->protocol != IPPROTO_ICMP)
		found = *ports;
	return is_watched_flow(filter, &ip->saddr, &ip->daddr, found);
}

/* The beginning of the frame as it is now; its whole length. */
static __always_inline u32 copy_frame(struct xdp_md *ctx, void *into)
{
	u32 bytes = ctx->data_end - ctx->data;
	u64 copied = bytes;

	OPAQUE(copied);	/* else the compiler compares another copy of it than the one that the verifier sees used */
	if (copied > WATCH_BYTES)
		copied = WATCH_BYTES;
	if (copied >= sizeof(struct ethhdr))	/* not `copied != 0`: before Linux 6.8 that tells the verifier nothing */
		bpf_xdp_load_bytes(ctx, 0, into, copied);
	return bytes;
}

static __always_inline void begin_watch(struct xdp_md *ctx)
{
	u32 row = 0;
	struct watch_filter *filter = watch_filter.lookup(&row);
	struct watched *packet = watching.lookup(&row);

	if (!filter || !packet)
		return;
	packet->is_on = 0;
	if (bpf_ktime_get_ns() >= filter->until || !is_watched(ctx, filter))
		return;
	if (filter->taken >= filter->limit) {
		packet->missed++;
		return;
	}
	packet->time = bpf_ktime_get_ns();
	packet->ingress = ctx->ingress_ifindex;
	__builtin_memset(packet->seen, 0xff, sizeof(packet->seen));
	packet->bytes = copy_frame(ctx, packet->before);
	packet->is_on = 1;
}

static __always_inline void end_watch(struct xdp_md *ctx, int action)
{
	u32 row = 0;
	struct watch_filter *filter = watch_filter.lookup(&row);
	struct watched *packet = watching.lookup(&row);
	struct watched *report;
	u64 number;

	if (!filter || !packet || !packet->is_on)
		return;
	packet->is_on = 0;
	packet->action = action;
	packet->bytes_after = copy_frame(ctx, packet->after);
	packet->sequence = 0;
	number = __sync_fetch_and_add(&filter->taken, 1);
	row = number % WATCH_REPORTS;
	watch_reports.update(&row, packet);	/* the kernel copies it: less for its verifier to follow */
	report = watch_reports.lookup(&row);
	if (!report)
		return;
	APART;
	*(volatile u64 *)&report->sequence = number + 1;
}
