// SPDX-License-Identifier: GPL-2.0-only
/*
 * What makes a program measurable by BPF_PROG_TEST_RUN with `repeat`. The kernel hands the program its own
 * output from the second round on, so each round begins by making the frame again what came in: what was put
 * before it is taken off, its headers are written anew, and the addresses are those of the next flow.
 */

#define BENCH_HEADERS 80	/* bytes of a frame that a program may change: Ethernet, IPv6, TCP, rounded up */
#define BENCH_ACTIONS 8

struct bench {
	u64 headers[BENCH_HEADERS / 8];
	u64 actions[BENCH_ACTIONS];	/* how often each was returned */
	u64 packet;		/* number of the next one */
	u32 flows;		/* how many there are, less one; a power of two less one, as the next */
	u32 services;
	u32 bytes;		/* of the whole frame */
	u32 grows;		/* only for the empty program: how many bytes it puts before a frame */
};

BPF_ARRAY(bench, struct bench, 1);

/* The number of a flow is in the source's address and port, that of a service in the VIP. */
#define BENCH_PORT_BITS 10

static __always_inline struct bench *bench_next(struct xdp_md *ctx)
{
	u32 row = 0, flow, service;
	struct bench *bench_row = bench.lookup(&row);
	int grown;
	u64 *frame;

	if (!bench_row)
		return NULL;
	grown = ctx->data_end - ctx->data - bench_row->bytes;
	if (grown && bpf_xdp_adjust_head(ctx, grown))
		return NULL;
	frame = (void *)(long)ctx->data;
	if ((void *)frame + BENCH_HEADERS > (void *)(long)ctx->data_end)
		return NULL;
	__builtin_memcpy(frame, bench_row->headers, BENCH_HEADERS);

	flow = bench_row->packet++ & bench_row->flows;
	service = flow & bench_row->services;
	if (((struct ethhdr *)frame)->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = (void *)frame + ETH_HLEN;
		__be16 *port = (void *)(ip + 1);

		ip->saddr.s6_addr32[3] = bpf_htonl(flow >> BENCH_PORT_BITS);
		ip->daddr.s6_addr32[3] = bpf_htonl(service);
		*port = bpf_htons(bpf_ntohs(*port) + (flow & ((1 << BENCH_PORT_BITS) - 1)));
	} else {
		struct iphdr *ip = (void *)frame + ETH_HLEN;
		__be16 *port = (void *)(ip + 1);

		ip->saddr = bpf_htonl(bpf_ntohl(ip->saddr) + (flow >> BENCH_PORT_BITS));
		ip->daddr = bpf_htonl(bpf_ntohl(ip->daddr) + service);
		*port = bpf_htons(bpf_ntohs(*port) + (flow & ((1 << BENCH_PORT_BITS) - 1)));
	}
	return bench_row;
}

static __always_inline int bench_count(struct bench *bench_row, int action)
{
	bench_row->actions[action & (BENCH_ACTIONS - 1)]++;
	return action;
}

/* What the wrapper costs by itself, without and with a header that is put before the frame. */
int bench_nothing(struct xdp_md *ctx)
{
	struct bench *bench_row = bench_next(ctx);

	if (!bench_row)
		return XDP_ABORTED;
	if (bench_row->grows && bpf_xdp_adjust_head(ctx, -(int)bench_row->grows))
		return XDP_ABORTED;
	return bench_count(bench_row, XDP_TX);
}

int bench_balance(struct xdp_md *ctx)
{
	struct bench *bench_row = bench_next(ctx);

	return bench_row ? bench_count(bench_row, lbctl_balance(ctx)) : XDP_ABORTED;
}
