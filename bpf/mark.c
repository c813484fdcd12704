// SPDX-License-Identifier: GPL-2.0-only
/*
 * The way out of the prober's network namespace, as a TC program on its interface: the mark of a packet's socket, which
 * names the endpoint that is checked, becomes the end of the source MAC, as marks don't leave a namespace. The program
 * of the balancer reads it there: check.h. What has no mark is about no check, and goes nowhere: a reset that answers a
 * late answer, for example.
 */

#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/pkt_cls.h>

int lbctl_mark(struct __sk_buff *skb)
{
	__be16 mac[ETH_ALEN / 2] = {
		bpf_htons(0x0200),	/* the MAC of no machine: IEEE 802, section 8.4 */
		bpf_htons(skb->mark >> 16),
		bpf_htons(skb->mark),
	};

	if (!skb->mark)
		return TC_ACT_SHOT;
	if (bpf_skb_store_bytes(skb, offsetof(struct ethhdr, h_source), mac, sizeof(mac), 0))
		return TC_ACT_SHOT;
	return TC_ACT_OK;
}
