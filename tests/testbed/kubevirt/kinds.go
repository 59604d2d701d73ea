// Package kubevirt pins the packages that KubeVirt's definitions are generated from.
package kubevirt

import (
	_ "kubevirt.io/api/core/v1"
	_ "kubevirt.io/containerized-data-importer-api/pkg/apis/core/v1beta1"
)
