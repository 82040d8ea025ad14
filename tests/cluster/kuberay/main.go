// KubeRay's controllers for RayCluster and RayJob. Its own main program also holds webhooks, off by
// default, which do not compile with the libraries that the other programs share.
package main

import (
	"log"

	routev1 "github.com/openshift/api/route/v1"
	configapi "github.com/ray-project/kuberay/ray-operator/apis/config/v1alpha1"
	rayv1 "github.com/ray-project/kuberay/ray-operator/apis/ray/v1"
	"github.com/ray-project/kuberay/ray-operator/controllers/ray"
	"github.com/ray-project/kuberay/ray-operator/controllers/ray/batchscheduler"
	"k8s.io/apimachinery/pkg/runtime"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
)

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func main() {
	ctrl.SetLogger(zap.New())
	scheme := runtime.NewScheme()
	must(clientscheme.AddToScheme(scheme))
	must(rayv1.AddToScheme(scheme))
	must(routev1.Install(scheme))
	must(configapi.AddToScheme(scheme))
	rest := ctrl.GetConfigOrDie()
	manager, err := ctrl.NewManager(rest, ctrl.Options{
		Scheme:                 scheme,
		Metrics:                metricsserver.Options{BindAddress: "0"},
		HealthProbeBindAddress: "127.0.0.1:19546",
	})
	must(err)
	ctx := ctrl.SetupSignalHandler()
	config := configapi.Configuration{}
	batch, err := batchscheduler.NewSchedulerManager(ctx, config, rest, manager.GetClient())
	must(err)
	clusters := ray.RayClusterReconcilerOptions{BatchSchedulerManager: batch}
	must(ray.NewReconciler(ctx, manager, clusters).SetupWithManager(manager, 1))
	jobs := ray.RayJobReconcilerOptions{BatchSchedulerManager: batch}
	must(ray.NewRayJobReconciler(ctx, manager, jobs, config).SetupWithManager(manager, 1))
	must(manager.AddHealthzCheck("healthz", healthz.Ping))
	must(manager.Start(ctx))
}
