/* Symbol visibility: everything is hidden except what carries TESSERA_API. */
#ifndef TESSERA_EXPORT_H_
#define TESSERA_EXPORT_H_

#if defined(__GNUC__) || defined(__clang__)
#define TESSERA_API __attribute__((visibility("default")))
#else
#define TESSERA_API
#endif

#endif /* TESSERA_EXPORT_H_ */
