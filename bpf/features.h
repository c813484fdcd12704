// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a program is compiled for. HAS(IPV6) is 1 if the compiler was given -DIPV6, else 0: a constant, so that code
 * behind a 0 is checked and then dropped, and with it the maps that nothing else uses.
 */

#define FEATURE_1 0,
#define TAKE_SECOND(first, second, ...) second
#define TAKE_BEHIND(feature) TAKE_SECOND(feature 1, 0)
#define PASTE_VALUE(value) TAKE_BEHIND(FEATURE_##value)
#define HAS(feature) PASTE_VALUE(feature)

/* Both modes of direct server return. */
#define HAS_DSR (HAS(DSR_L2) || HAS(DSR_L3))

/* Whether this is no main program but a stage: stage.h. */
#define IS_STAGE (TRANSLATES || HAS(AS_LENDER) || HAS(AS_SWEEPER) || HAS(AS_FRAGMENTS))

/* Whether it is one that translates addresses. */
#define TRANSLATES (HAS(AS_NAT) || HAS(AS_FULLNAT))	/* AS_NAT6 beside AS_NAT: over IPv6; AS_SCTP: of SCTP; AS_FIRST: first fragments */

/* The modes that translate addresses. */
#define HAS_TRANSLATION (HAS(NAT) || HAS(FULLNAT))

/* The empty assembly keeps the compiler from knowing a value, and so from what it would make of its knowledge. */
#define OPAQUE(value) asm volatile("" : "+r"(value))

/*
 * As the last statement of a branch: keeps the compiler from doing what both branches do in one place, with pointers that
 * differ. Some verifiers can't follow that.
 */
#define APART asm volatile("" : : : "memory")
